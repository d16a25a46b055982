package ondemand

import (
	"cmp"
	"context"
	"errors"
	"slices"
)

// tool is a decoder and a buffer for what it makes.
type tool struct {
	decoder Decoder
	buf     []byte
}

func (t *tool) buffer(n int) []byte {
	if cap(t.buf) < n {
		t.buf = make([]byte, n)
	}
	return t.buf[:n]
}

// toolKeeps is the largest buffer that stays with a tool: the chunks of most tools have 4 MiB.
const toolKeeps = 4 << 20

func (t *tool) shrink() {
	if cap(t.buf) > toolKeeps {
		t.buf = nil
	}
}

// streamedBytes is from how many compressed bytes on an extent is decoded while it comes: decoding less takes a millisecond.
const streamedBytes = 128 << 10

// togetherBytes is up to how many bytes a request is decoded when all have come: a slow link brings them in 2 ms.
const togetherBytes = 32 << 10

// streamed tells whether an extent is decoded while it comes.
func (x numbered) streamed() bool { return x.BlobLength >= streamedBytes }

// decodedAsItComes tells whether decoding begins before all of a request has come: so that a fault does not wait for its neighbours, and
// not for its decoder.
func (r *request) decodedAsItComes() bool {
	return r.bytes() >= togetherBytes && (len(r.extents) > 1 || r.extents[0].streamed())
}

// memory is what a request takes of it: a decoder that waits for more holds what it has made.
func (r *request) memory() int64 {
	n := int64(0)
	if r.decodedAsItComes() {
		for _, x := range r.extents {
			n = max(n, int64(x.Length))
		}
	}
	return n + r.bytes()
}

// corrupt is an extent whose bytes were wrong.
type corrupt struct {
	numbered
	err error
}

// decode writes the extents of a request one after the other, and returns those whose bytes are wrong, in the order of the table. Those
// whose bytes do not come, and all that are left after an error that is not about the bytes, are missed.
func (l *Layer) decode(ctx context.Context, r *request, a *arrival) (bad []corrupt, err error) {
	d := &decoding{l: l, ctx: ctx, r: r, a: a}
	if !d.enter() {
		l.missed(r.extents, d.err)
		return nil, d.err
	}
	defer d.leave()
	t := l.engine.tools.Get().(*tool)
	defer l.engine.tools.Put(t)
	defer t.shrink()
	order := r.extents
	if r.first > 0 {
		order = slices.Concat(r.extents[r.first:], r.extents[:r.first])
	}
	for n := range order {
		x := &order[n]
		dst := t.buffer(int(x.Length))
		switch err := d.decode(t.decoder, x, dst); {
		case d.err != nil:
			l.missed(order[n:], d.err)
			return sorted(bad), d.err
		case err == errShort:
			l.missed(order[n:n+1], cmp.Or(a.failed(), err))
			continue
		case err != nil:
			l.counts.corrupt.Add(1)
			bad = append(bad, corrupt{*x, err})
			continue
		}
		if err := l.write(ctx, r, x, dst); err != nil {
			l.missed(order[n:], err)
			return sorted(bad), err
		}
	}
	return sorted(bad), nil
}

func sorted(bad []corrupt) []corrupt {
	slices.SortFunc(bad, func(a, b corrupt) int { return a.i - b.i })
	return bad
}

// write puts the bytes of an extent, which are right, into the blob.
func (l *Layer) write(ctx context.Context, r *request, x *numbered, bytes []byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := l.blob.Write(x.i, bytes); err != nil {
		return err
	}
	l.counts.filled.Add(int64(x.Length))
	if class(r.class.Load()) != prefetch {
		l.noteRead(int64(x.Length))
	}
	l.arrived(x.i)
	return nil
}

// decoding is the work of a processor on a request. It gives the processor back while it waits for bytes.
type decoding struct {
	l      *Layer
	ctx    context.Context
	r      *request
	a      *arrival
	taken  int64
	has    bool      // a processor
	err    error     // it gets none any more
	opened *numbered // one whose range the decoder has
}

// errShort says that the bytes of an extent have not all come.
var errShort = errors.New("not all bytes have come")

func (d *decoding) enter() bool {
	d.taken, d.err = d.l.engine.processors.enter(d.ctx, 1, &d.r.class, nil)
	d.has = d.err == nil
	return d.has
}

func (d *decoding) leave() {
	if d.has {
		d.l.engine.processors.leave(d.taken, nil)
		d.has = false
	}
}

// wait is the arrival's, without a processor.
func (d *decoding) wait(n int) int {
	if come, over := d.a.there(n); over || d.err != nil {
		return come
	}
	d.leave()
	come := d.a.wait(n)
	d.enter()
	return come
}

// decode makes the bytes of an extent. errShort says that they could not be had, d.err that it is over, and any other error that
// the extent is corrupt.
func (d *decoding) decode(decoder Decoder, x *numbered, dst []byte) error {
	from := int(x.BlobOffset - d.r.from)
	to := from + int(x.BlobLength)
	err := d.open(decoder, x, from, to)
	if err == nil {
		err = decoder.Decode(x.Extent, dst)
	}
	if err == nil {
		return nil
	}
	if d.wait(to) < to { // only of bytes that have come can be said that they are wrong
		return errShort
	}
	return err
}

// open gives the decoder the range of an extent, which is the request's bytes from and to, unless it has it.
func (d *decoding) open(decoder Decoder, x *numbered, from, to int) error {
	if d.opened != nil && x.sameRange(*d.opened) {
		return nil
	}
	begin := to
	if x.streamed() {
		begin = from + 1
	}
	come := d.wait(begin)
	if come < begin {
		return errShort
	}
	var more func(int) int
	if come < to {
		more = func(have int) int { return min(d.wait(from+have+1), to) - from }
	}
	d.opened = nil
	if err := decoder.Open(x.Kind, x.BlobOffset, d.a.buf[from:to], more); err != nil {
		return err
	}
	d.opened = x
	return nil
}
