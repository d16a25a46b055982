// Package testca is a certificate authority for one test: it makes the keys and certificates of servers on loopback addresses. Nothing
// of it is worth protecting, and everything is valid for a day.
package testca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// validity is far longer than a test. Certificates are valid for an hour before they were made, too, for machines whose clocks differ.
const validity = 24 * time.Hour

// Addresses are what server certificates are made for, besides the name localhost: the loopback addresses on which tests listen.
var Addresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)}

// CA is an authority with one server certificate. A nil *CA stands for plain HTTP: Pool and ServerTLS return nil.
type CA struct {
	root, server *x509.Certificate
	serverKey    *ecdsa.PrivateKey
}

// New makes the authority and a certificate for a server on any of Addresses.
func New() (*CA, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	rootTemplate := template("test authority")
	rootTemplate.IsCA, rootTemplate.BasicConstraintsValid = true, true
	rootTemplate.KeyUsage = x509.KeyUsageCertSign
	root, err := sign(rootTemplate, rootTemplate, &rootKey.PublicKey, rootKey)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of a test authority: %w", err)
	}
	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serverTemplate := template("test server")
	serverTemplate.IPAddresses, serverTemplate.DNSNames = Addresses, []string{"localhost"}
	serverTemplate.KeyUsage = x509.KeyUsageDigitalSignature
	serverTemplate.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server, err := sign(serverTemplate, root, &serverKey.PublicKey, rootKey)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of a test server: %w", err)
	}
	return &CA{root: root, server: server, serverKey: serverKey}, nil
}

func template(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(validity),
	}
}

func sign(template, parent *x509.Certificate, key *ecdsa.PublicKey, parentKey *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, parentKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Pool trusts the authority.
func (ca *CA) Pool() *x509.CertPool {
	if ca == nil {
		return nil
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.root)
	return pool
}

// PEM is the certificate of the authority.
func (ca *CA) PEM() []byte { return encode("CERTIFICATE", ca.root.Raw) }

// ServerTLS is the configuration of a server on any of Addresses.
func (ca *CA) ServerTLS() *tls.Config {
	if ca == nil {
		return nil
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{ca.server.Raw}, PrivateKey: ca.serverKey, Leaf: ca.server}},
		MinVersion:   tls.VersionTLS12,
	}
}

// ServerCertificate is the certificate of ServerTLS, and the key that belongs to it.
func (ca *CA) ServerCertificate() (*x509.Certificate, *ecdsa.PrivateKey) {
	return ca.server, ca.serverKey
}

// Files are where WriteFiles put PEM files.
type Files struct{ CA, Certificate, Key string }

// WriteFiles writes the authority's certificate and the server's certificate and key into a directory, for programs that read files.
func (ca *CA) WriteFiles(dir string) (Files, error) {
	key, err := x509.MarshalPKCS8PrivateKey(ca.serverKey)
	if err != nil {
		return Files{}, err
	}
	files := Files{CA: filepath.Join(dir, "ca.pem"), Certificate: filepath.Join(dir, "server.pem"), Key: filepath.Join(dir, "server.key")}
	for path, text := range map[string][]byte{
		files.CA:          ca.PEM(),
		files.Certificate: encode("CERTIFICATE", ca.server.Raw),
		files.Key:         encode("PRIVATE KEY", key),
	} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return Files{}, err
		}
	}
	return files, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
