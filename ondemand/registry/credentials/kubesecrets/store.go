package kubesecrets

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

// store holds the credentials of all secrets of one type. A reflector fills it.
type store struct {
	secretType string
	parse      func(secret *unstructured.Unstructured) (login.Keyring, error)
	log        *slog.Logger

	mu    sync.Mutex
	rings map[secretName]login.Keyring
}

type secretName struct{ namespace, name string }

// candidate is a credential and the secret that it comes from.
type candidate struct {
	login.Entry
	secretName
}

var _ cache.ReflectorStore = (*store)(nil)

// match appends what the secrets have for t.
func (s *store) match(t login.Target, found []candidate) []candidate {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, ring := range s.rings {
		for _, e := range ring.Match(t) {
			found = append(found, candidate{e, name})
		}
	}
	return found
}

// Add takes over a secret that is new.
func (s *store) Add(object any) error { return s.Update(object) }

// Update takes over a secret.
func (s *store) Update(object any) error {
	name, ring, err := s.read(object)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rings == nil {
		s.rings = make(map[secretName]login.Keyring)
	}
	s.rings[name] = ring
	return nil
}

// Delete forgets a secret.
func (s *store) Delete(object any) error {
	secret, ok := object.(*unstructured.Unstructured)
	if !ok {
		return errNoSecret(object)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.rings, nameOf(secret))
	return nil
}

// Replace takes over the given secrets, which are all that there are.
func (s *store) Replace(objects []any, _ string) error {
	rings := make(map[secretName]login.Keyring, len(objects))
	for _, object := range objects {
		name, ring, err := s.read(object)
		if err != nil {
			return err
		}
		rings[name] = ring
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rings = rings
	return nil
}

// Resync has nothing to do: what is held needs no repetition.
func (s *store) Resync() error { return nil }

// read returns the credentials of a secret. One that cannot be parsed has none; others do not suffer from it.
func (s *store) read(object any) (secretName, login.Keyring, error) {
	secret, ok := object.(*unstructured.Unstructured)
	if !ok {
		return secretName{}, nil, errNoSecret(object)
	}
	name := nameOf(secret)
	ring, err := s.parse(secret)
	if err != nil {
		s.log.Warn("image pull secret of Kubernetes cannot be read: it is not used", "namespace", name.namespace, "secret", name.name,
			"type", s.secretType, "cause", err)
	}
	return name, ring, nil
}

func errNoSecret(object any) error { return fmt.Errorf("secret of Kubernetes: got a %T", object) }

func nameOf(secret *unstructured.Unstructured) secretName {
	return secretName{namespace: secret.GetNamespace(), name: secret.GetName()}
}

// parseConfigJSON reads a kubernetes.io/dockerconfigjson: docker's config.json. The credential programs that it may name are not run.
func parseConfigJSON(secret *unstructured.Unstructured) (login.Keyring, error) {
	data, err := dataOf(secret, ".dockerconfigjson")
	if err != nil {
		return nil, err
	}
	return parseAuths(data)
}

// parseConfig reads a kubernetes.io/dockercfg: what docker's config.json has as "auths".
func parseConfig(secret *unstructured.Unstructured) (login.Keyring, error) {
	data, err := dataOf(secret, ".dockercfg")
	if err != nil {
		return nil, err
	}
	if data, err = json.Marshal(map[string]json.RawMessage{"auths": data}); err != nil {
		return nil, errors.New("is not JSON") // the error of encoding/json may show a piece of it
	}
	return parseAuths(data)
}

func parseAuths(config []byte) (login.Keyring, error) {
	file := configfile.ConfigFile{AuthConfigs: make(map[string]types.AuthConfig)}
	if err := file.LoadFromReader(bytes.NewReader(config)); err != nil {
		return nil, err
	}
	return login.NewKeyring(file.AuthConfigs), nil
}

// dataOf returns one value of the secret's data.
func dataOf(secret *unstructured.Unstructured, key string) ([]byte, error) {
	encoded, found, err := unstructured.NestedString(secret.Object, "data", key)
	if err != nil || !found {
		return nil, fmt.Errorf("has no %s", key)
	}
	data, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return data, nil
}
