package faultproxy

import (
	"maps"
	"net/http"
	"slices"
)

// Kind names a fault.
type Kind string

// Faults of connections.
const (
	none Kind = ""
	// ClosedOnAccept resets a new connection: with TLS, in the handshake. It is drawn for each connection, not for each request.
	ClosedOnAccept Kind = "closed on accept"
	// ResetBeforeHeaders resets the connection instead of an answer.
	ResetBeforeHeaders Kind = "reset before headers"
	// ResetAfterHeaders resets it when only the headers were sent.
	ResetAfterHeaders Kind = "reset after headers"
	// ResetInBody resets it at a random place of the body.
	ResetInBody Kind = "reset in body"
	// ClosedInBody closes it there as if all had been sent, with fewer bytes than Content-Length says.
	ClosedInBody Kind = "closed in body"
	// StallBeforeHeaders sends nothing for Options.Stall and closes.
	StallBeforeHeaders Kind = "stall before headers"
	// StallInBody does so at a random place of the body.
	StallInBody Kind = "stall in body"
	// Trickle sends a few bytes at a time from a random place of the body on, for Options.Stall; then all that is left.
	Trickle Kind = "trickle"
)

// Answers that are honest about a failure.
const (
	Status500 Kind = "500"
	Status502 Kind = "502"
	Status503 Kind = "503"
	Status504 Kind = "504"
	// Status429 has a header Retry-After.
	Status429 Kind = "429"
	Status408 Kind = "408"
	// Status401 has no challenge, and no reason.
	Status401 Kind = "401"
	// NotFoundOnce is 404 for something that exists, at most once for each path.
	NotFoundOnce Kind = "404 once"
	// ExpiredURL redirects a blob to a signed URL that is no longer valid: 403.
	ExpiredURL Kind = "403 after redirect"
	// RedirectLoop redirects to itself for ever.
	RedirectLoop Kind = "redirect loop"
	// Status416 says of a good range that it is not one.
	Status416 Kind = "416"
)

// Answers that look good.
const (
	// IgnoredRange is 200 and everything for a request for a range.
	IgnoredRange Kind = "200 for a range"
	// WrongStart is 206 whose Content-Range begins one byte later than what was asked for, with the bytes that were asked for.
	WrongStart Kind = "wrong start"
	// WrongTotal is 206 whose Content-Range names another size of the whole.
	WrongTotal Kind = "wrong total"
	// ShortRange is 206 that ends properly before the range does; Content-Range tells of the whole range.
	ShortRange Kind = "short range"
	// LongBody has bytes after the end of what was asked for, and a Content-Length that includes them.
	LongBody Kind = "long body"
	// FlippedByte has one wrong byte.
	FlippedByte Kind = "flipped byte"
	// Gzipped is compressed, and says so, although nobody asked for it.
	Gzipped Kind = "gzip"
)

// needs is what a request must be so that a fault can happen to it.
type needs int

const (
	connection needs = iota // drawn elsewhere: no request
	anything
	body
	ranged
	blob
)

// trait is what there is to know of a kind. Faults of an answer are made of the target's own, and happen only if it is a good one.
type trait struct {
	needs    needs
	ofAnswer bool
}

var traits = map[Kind]trait{
	ClosedOnAccept:     {connection, false},
	ResetBeforeHeaders: {anything, false},
	ResetAfterHeaders:  {body, true},
	ResetInBody:        {body, true},
	ClosedInBody:       {body, true},
	StallBeforeHeaders: {anything, false},
	StallInBody:        {body, true},
	Trickle:            {body, true},
	Status500:          {anything, false},
	Status502:          {anything, false},
	Status503:          {anything, false},
	Status504:          {anything, false},
	Status429:          {anything, false},
	Status408:          {anything, false},
	Status401:          {anything, false},
	NotFoundOnce:       {anything, false},
	ExpiredURL:         {blob, false},
	RedirectLoop:       {blob, false},
	Status416:          {ranged, false},
	IgnoredRange:       {ranged, true},
	WrongStart:         {ranged, true},
	WrongTotal:         {ranged, true},
	ShortRange:         {ranged, true},
	LongBody:           {body, true},
	FlippedByte:        {body, true},
	Gzipped:            {body, true},
}

// AllKinds returns every kind of fault, sorted.
func AllKinds() []Kind { return slices.Sorted(maps.Keys(traits)) }

// possible says whether the fault can happen to a request.
func (k Kind) possible(r *http.Request) bool {
	get := r.Method == http.MethodGet
	switch traits[k].needs {
	case anything:
		return true
	case body:
		return get
	case ranged:
		return get && r.Header.Get("Range") != ""
	case blob:
		return isBlob(r)
	default:
		return false
	}
}
