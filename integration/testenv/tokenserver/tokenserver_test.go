package tokenserver

import (
	"encoding/json"
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/testca"
)

// TestToken asks for a token and reads it the way a registry does. That distribution accepts it is tested with the lab.
func TestToken(t *testing.T) {
	ca, err := testca.New()
	if err != nil {
		t.Fatal(err)
	}
	certificate, key := ca.ServerCertificate()
	s, err := New(Options{User: "me", Password: "secret", Lifetime: 5 * time.Second, Certificate: certificate, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ask := func(method, password, query string) (*http.Response, map[string]any) {
		t.Helper()
		req, err := http.NewRequest(method, s.Realm()+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("me", password)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer map[string]any
		_ = json.NewDecoder(resp.Body).Decode(&answer) // refusals are no JSON
		return resp, answer
	}
	if resp, _ := ask("GET", "wrong", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("wrong password: status %d, want 401", resp.StatusCode)
	}
	if resp, _ := ask("POST", "secret", ""); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: status %d, want 405", resp.StatusCode)
	}
	before := time.Now()
	_, answer := ask("GET", "secret", "?service=x&scope=repository:a/b:pull,push&scope=registry:catalog:*")
	if answer["expires_in"] != 5.0 || s.Issued() != 1 {
		t.Errorf("expires_in %v, %d tokens issued, want 5 and 1", answer["expires_in"], s.Issued())
	}
	text, _ := answer["token"].(string)
	claims := jwt.MapClaims{}
	// Its end has passed already: distribution grants a minute more.
	_, err = jwt.NewParser(jwt.WithLeeway(leeway)).ParseWithClaims(text, claims, func(*jwt.Token) (any, error) { return &key.PublicKey, nil })
	if err != nil {
		t.Fatalf("token %q: %v", text, err)
	}
	end := time.Unix(int64(claims["exp"].(float64)), 0).Add(leeway)
	if end.Before(before.Add(4*time.Second)) || end.After(time.Now().Add(5*time.Second)) {
		t.Errorf("the token asked for at %v is accepted until %v, want 5 s", before, end)
	}
	want := []any{
		map[string]any{"type": "repository", "name": "a/b", "actions": []any{"pull", "push"}},
		map[string]any{"type": "registry", "name": "catalog", "actions": []any{"*"}},
	}
	if !reflect.DeepEqual(claims["access"], want) {
		t.Errorf("access %v, want %v", claims["access"], want)
	}
}
