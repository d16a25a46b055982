package main

import "context"

// method does something with a layer. It is a script or is written in Go.
type method struct {
	name  string
	forms []string // of the layers that it is for
	// writes says that it gets an empty directory on a fresh file system.
	writes bool
	// script reads the file $IN and writes into the directory $OUT.
	script string
	run    func(ctx context.Context, j job, r *report) error
}

func methodName(m method) string { return m.name }

// Names in the table and in ratios.
const (
	ours             = "import"
	igzip            = "igzip"
	unpigz           = "unpigz"
	zstd             = "zstd"
	ctrdErofs        = "ctrd-erofs"
	ctrdErofsSynced  = "ctrd-erofs-fsync"
	goErofs          = "go-erofs"
	gnuTar           = "gnu-tar"
	ctrdApply        = "ctrd-apply"
	catFile          = "cat-fsync"
	inflateOnly      = "inflate"
	inflateKlauspost = "klauspost"
	inflateStdlib    = "stdlib"
	checkpoints1     = "checkpoints-1MiB"
	checkpoints4     = "checkpoints-4MiB"
)

var methods = []method{
	// What our daemon does with a layer: decompress, both digests, convert, sync, rename into place.
	{name: ours, forms: []string{plain, gz, zst}, writes: true, run: importLayer},
	// The least that reading costs.
	{name: igzip, forms: []string{gz}, script: `igzip -dc <"$IN" >/dev/null`},
	{name: unpigz, forms: []string{gz}, script: `unpigz -c <"$IN" >/dev/null`},
	{name: zstd, forms: []string{zst}, script: `zstd -dcq <"$IN" >/dev/null`},
	{name: ctrdErofs, forms: []string{gz}, writes: true, script: mkfs},
	{name: ctrdErofsSynced, forms: []string{gz}, writes: true, script: mkfs + "\n" + `sync "$OUT/layer.erofs"`},
	{name: goErofs, forms: []string{gz}, writes: true, run: goErofsLayer},
	{name: gnuTar, forms: []string{gz}, writes: true, script: `igzip -dc <"$IN" | tar -x -C "$OUT"; sync -f "$OUT"`},
	{name: ctrdApply, forms: []string{gz}, writes: true, run: applyLayer},
	// The least that any conversion has to do: write as many bytes.
	{name: catFile, forms: []string{plain}, writes: true, script: `cat <"$IN" >"$OUT/tar"; sync "$OUT/tar"`},
	{name: inflateOnly, forms: []string{gz}, run: inflateLayer(0)},
	{name: checkpoints1, forms: []string{gz}, run: inflateLayer(1 << 20)},
	{name: checkpoints4, forms: []string{gz}, run: inflateLayer(4 << 20)},
	{name: inflateKlauspost, forms: []string{gz}, run: klauspostLayer},
	{name: inflateStdlib, forms: []string{gz}, run: stdlibLayer},
}

// mkfs is the shape of containerd's erofs differ: the tar passes through SHA-256 on its way to mkfs.erofs, which has the arguments of
// containerd 2.4.2 (internal/erofsutils) and, last, those that its documentation recommends. containerd hashes with the processor's
// instructions for that. So does openssl; Debian's sha256sum does not, and would hold up the pipeline.
const mkfs = `mkfifo "$OUT/tar"
openssl dgst -sha256 "$OUT/tar" & hash=$!
igzip -dc <"$IN" | tee "$OUT/tar" |
	mkfs.erofs --tar=f --aufs --quiet -Enoinline_data -T0 --mkfs-time --sort=none "$OUT/layer.erofs"
wait $hash`
