package lab

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// CertificateDir is where grid hosts keep the authorities they trust.
const CertificateDir = "/etc/grid-security/certificates"

// authority is the lab's certificate authority, laid out as the IGTF's packages lay theirs out:
//
//	ca/cert.pem, ca/key.pem  the authority
//	certificates/            what hosts get as CertificateDir: lab-ca.pem, HASH.0 and HASH.signing_policy for
//	                         OpenSSL's hash and the one before OpenSSL 1.0, both of which grid software uses
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *rsa.PrivateKey
}

// Request describes a certificate that the lab's authority shall sign.
type Request struct {
	Name     string    // common name
	DNS      []string  // names of the host; none for a person
	NotAfter time.Time // default: in a year
	Forged   bool      // signed by somebody who only calls himself the authority
}

// name returns /DC=org/DC=example/CN=cn.
func name(cn string) pkix.Name {
	dc := asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}
	ia5 := func(s string) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte(s)} }
	return pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: dc, Value: ia5("org")},
		{Type: dc, Value: ia5("example")},
		{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: cn},
	}}
}

func newAuthority(dir string) (*authority, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: name("Lab CA"),
		NotBefore: time.Now().Add(-2 * 24 * time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	ca := &authority{dir: dir, key: key}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	if err := writePair(filepath.Join(dir, "ca", "cert.pem"), filepath.Join(dir, "ca", "key.pem"), der, key); err != nil {
		return nil, err
	}
	return ca, ca.writeTrust()
}

func openAuthority(dir string) (*authority, error) {
	ca := &authority{dir: dir}
	cert, err := readPEM(filepath.Join(dir, "ca", "cert.pem"))
	if err != nil {
		return nil, err
	}
	if ca.cert, err = x509.ParseCertificate(cert); err != nil {
		return nil, err
	}
	der, err := readPEM(filepath.Join(dir, "ca", "key.pem"))
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	ca.key = key.(*rsa.PrivateKey)
	return ca, nil
}

// writeTrust fills the directory of trusted authorities.
func (ca *authority) writeTrust() error {
	dir := filepath.Join(ca.dir, "certificates")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cert, err := os.ReadFile(filepath.Join(ca.dir, "ca", "cert.pem"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "lab-ca.pem"), cert, 0o644); err != nil {
		return err
	}
	policy := "access_id_CA      X509         '/DC=org/DC=example/CN=Lab CA'\n" +
		"pos_rights        globus        CA:sign\n" +
		"cond_subjects     globus     '\"/DC=org/DC=example/*\"'\n"
	for _, kind := range []string{"-subject_hash", "-subject_hash_old"} {
		out, err := exec.Command("openssl", "x509", "-in", filepath.Join(dir, "lab-ca.pem"), "-noout", kind).Output()
		if err != nil {
			return fmt.Errorf("cannot hash the authority's name: openssl: %w", err)
		}
		hash := strings.TrimSpace(string(out))
		if err := os.Symlink("lab-ca.pem", filepath.Join(dir, hash+".0")); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, hash+".signing_policy"), []byte(policy), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// issue writes a certificate and its key, the key readable by its owner alone.
func (ca *authority) issue(r Request, certFile, keyFile string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	if r.NotAfter.IsZero() {
		r.NotAfter = time.Now().AddDate(1, 0, 0)
	}
	// Grid CAs give every certificate an identifier of its key, and a VOMS server cannot sign with one that has none.
	id := sha1.Sum(x509.MarshalPKCS1PublicKey(&key.PublicKey))
	template := &x509.Certificate{
		SerialNumber: serial, Subject: name(r.Name), DNSNames: r.DNS, SubjectKeyId: id[:],
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: r.NotAfter, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if len(r.DNS) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	signer, signerKey := *ca.cert, ca.key
	if r.Forged {
		if signerKey, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return err
		}
		signer.PublicKey = signerKey.Public()
	}
	der, err := x509.CreateCertificate(rand.Reader, template, &signer, key.Public(), signerKey)
	if err != nil {
		return err
	}
	return writePair(certFile, keyFile, der, key)
}

func writePair(certFile, keyFile string, cert []byte, key *rsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, kind string
		data       []byte
		mode       os.FileMode
	}{{certFile, "CERTIFICATE", cert, 0o644}, {keyFile, "PRIVATE KEY", der, 0o400}} {
		if err := os.MkdirAll(filepath.Dir(f.name), 0o755); err != nil {
			return err
		}
		// Replaced, not overwritten: the old one may be read-only.
		if err := os.Remove(f.name); err != nil && !os.IsNotExist(err) {
			return err
		}
		if err := os.WriteFile(f.name, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.data}), f.mode); err != nil {
			return err
		}
	}
	return nil
}

func readPEM(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("cannot read %s: not PEM", file)
	}
	return block.Bytes, nil
}
