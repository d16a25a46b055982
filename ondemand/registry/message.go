package registry

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"unicode"
)

const (
	// maxMessageBody is enough for the few lines of JSON of a registry's error.
	maxMessageBody = 4 << 10
	maxMessage     = 200
)

// registryMessage returns what the body of an error answer says, in the form of the distribution specification: "TOOMANYREQUESTS: You have
// reached…". Other bodies may be pages of whatever stands in between, and are not shown.
func registryMessage(resp *http.Response) string {
	if !strings.Contains(resp.Header.Get("Content-Type"), "json") {
		return ""
	}
	var content struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, maxMessageBody)).Decode(&content) != nil || len(content.Errors) == 0 {
		return ""
	}
	first := content.Errors[0]
	return printable(redact(first.Code + ": " + first.Message))
}

// printable returns one bounded line.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, " "))
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "…"
	}
	return s
}
