package transport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/melbahja/goph"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// identity collects the keys to offer to a hop. SSH has but one method for keys, so that files and agent make one list.
type identity struct {
	hop      *hop
	cfg      Config
	pause    func() func() // stops the clock while a person types
	agent    net.Conn
	problems []string // what was passed over, for the error when nothing else helped
}

// auth is what goph and ssh want to know of it.
func (i *identity) auth() goph.Auth { return goph.Auth{ssh.PublicKeysCallback(i.signers)} }

// close ends the conversation with the agent. It is never forwarded.
func (i *identity) close() {
	if i.agent != nil {
		_ = i.agent.Close()
	}
}

func (i *identity) signers() ([]ssh.Signer, error) {
	held := i.agentSigners()
	var own []ssh.Signer
	used := map[string]bool{}
	for _, k := range i.hop.keys {
		s, err := i.fileSigner(k.path)
		switch {
		case os.IsNotExist(err) && !k.must:
			continue
		case err != nil && k.must:
			return nil, err
		case err != nil:
			i.problem(err.Error())
			continue
		}
		blob := string(s.PublicKey().Marshal())
		if used[blob] {
			continue
		}
		used[blob] = true
		for _, h := range held { // the agent has it open already
			if string(h.PublicKey().Marshal()) == blob {
				s = h
			}
		}
		own = append(own, s)
	}
	if !i.hop.onlyKeys {
		for _, h := range held {
			if !used[string(h.PublicKey().Marshal())] {
				own = append(own, h)
			}
		}
	}
	if len(own) == 0 {
		return nil, errors.New("there is no private key to log in with")
	}
	return own, nil
}

func (i *identity) problem(sentence string) {
	i.problems = append(i.problems, sentence)
	i.cfg.warn(sentence)
}

func (i *identity) agentSigners() []ssh.Signer {
	if i.hop.agent == "" {
		return nil
	}
	conn, err := net.DialTimeout("unix", i.hop.agent, 5*time.Second)
	if err != nil {
		i.problem(fmt.Sprintf("the ssh agent cannot be reached: %v", err))
		return nil
	}
	i.agent = conn
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second)) // to list is quick; to sign may take a touch or a yes
	signers, err := agent.NewClient(conn).Signers()
	_ = conn.SetDeadline(time.Time{})
	if err != nil {
		i.problem(fmt.Sprintf("the ssh agent at %s does not list its keys: %v", i.hop.agent, err))
		return nil
	}
	return signers
}

// fileSigner reads a private key. An encrypted one is opened only when the host wants its signature, if its public
// half can be read without.
func (i *identity) fileSigner(path string) (ssh.Signer, error) {
	s, err := goph.GetSigner(path, "")
	if err == nil || os.IsNotExist(err) {
		return s, err
	}
	var locked *ssh.PassphraseMissingError
	if !errors.As(err, &locked) {
		return nil, fmt.Errorf("cannot use the private key %s: %w", path, err)
	}
	public := locked.PublicKey
	if public == nil {
		if b, err := os.ReadFile(path + ".pub"); err == nil {
			public, _, _, _, _ = ssh.ParseAuthorizedKey(b)
		}
	}
	if public == nil {
		return i.unlock(path)
	}
	return &lockedKey{public: public, unlock: func() (ssh.Signer, error) { return i.unlock(path) }}, nil
}

func (i *identity) unlock(path string) (ssh.Signer, error) {
	if i.cfg.Passphrase == nil {
		return nil, fmt.Errorf("the private key %s is encrypted, and there is nobody to ask for its passphrase: add it to an ssh agent", path)
	}
	resume := i.pause()
	phrase, err := i.cfg.Passphrase(path)
	resume()
	if err != nil {
		return nil, fmt.Errorf("cannot open the private key %s: %w", path, err)
	}
	s, err := goph.GetSigner(path, phrase.Reveal())
	if err != nil {
		return nil, fmt.Errorf("cannot open the private key %s: %s", path, strings.TrimPrefix(err.Error(), "x509: "))
	}
	return s, nil
}

// lockedKey is an encrypted private key that nobody was asked about yet.
type lockedKey struct {
	public ssh.PublicKey
	unlock func() (ssh.Signer, error)
}

func (k *lockedKey) PublicKey() ssh.PublicKey { return k.public }

func (k *lockedKey) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return k.SignWithAlgorithm(rand, data, "")
}

func (k *lockedKey) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	s, err := k.unlock()
	if err != nil {
		return nil, err
	}
	if a, ok := s.(ssh.AlgorithmSigner); ok && algorithm != "" {
		return a.SignWithAlgorithm(rand, data, algorithm)
	}
	return s.Sign(rand, data)
}
