package registry

import (
	"context"
	"errors"
	"regexp"
)

// address finds URLs, with what may be secret in groups of its own: userinfo, and query and fragment.
var address = regexp.MustCompile(`(?i)(\b[a-z][a-z0-9+.-]*://)([^/\s"'?#]*@)?([^\s"'?#]*)([?#][^\s"']*)?`)

// redact removes userinfo and query strings from all URLs in a text: signed URLs are as good as a password.
func redact(text string) string { return address.ReplaceAllString(text, "${1}${3}") }

// scrubbed is an error of which only the text is kept, redacted, and whether the work was cancelled. What it was made from, which
// may hold a *url.Error with the whole address, cannot be reached.
type scrubbed struct {
	text  string
	cause error
}

func (e *scrubbed) Error() string { return e.text }
func (e *scrubbed) Unwrap() error { return e.cause }

// scrub returns err as it may be shown. An error without an address is returned as it is.
func scrub(err error) error {
	text := redact(err.Error())
	if text == err.Error() {
		return err
	}
	s := &scrubbed{text: text}
	for _, cause := range []error{context.Canceled, context.DeadlineExceeded, errDowngrade, errRedirects} {
		if errors.Is(err, cause) {
			s.cause = cause
		}
	}
	return s
}
