// Package login is what the sources of credentials have in common: what a credential is, which host and repository it is
// wanted for, how the keys of a docker configuration are matched, and which of several to try next after a refusal.
//
// It keeps nothing: values are handed through, and Memory holds only hashes.
package login

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
)

// Login is one credential: a user with a password, or an identity token, which has no user. The zero Login means that nothing is
// known.
type Login struct {
	User, Secret string
}

// Known tells whether l holds a credential at all.
func (l Login) Known() bool { return l != Login{} }

// String hides the credential, so that no message can show it by accident.
func (l Login) String() string { return "(hidden)" }

// GoString hides the credential from %#v.
func (l Login) GoString() string { return l.String() }

// sum identifies l without holding its secret.
func (l Login) sum() [sha256.Size]byte {
	return sha256.Sum256([]byte(l.User + "\x00" + l.Secret))
}

// DecodeBasic reads the "auth" field of docker's configuration and of CRI's AuthConfig: base64 of user:password. Errors do not show
// what was decoded.
func DecodeBasic(auth string) (Login, error) {
	plain, err := base64.StdEncoding.DecodeString(auth)
	if err != nil {
		return Login{}, errors.New("is not base64")
	}
	user, password, found := strings.Cut(string(plain), ":")
	if !found || user == "" {
		return Login{}, errors.New("is not base64 of user:password")
	}
	// Some clients fill a block of fixed size with zero bytes; docker and containerd drop them as well.
	return Login{User: user, Secret: strings.Trim(password, "\x00")}, nil
}
