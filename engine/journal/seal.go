package journal

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Seal returns what tells whether a secret is the same as in another record of this state directory, and nothing else: its HMAC-SHA-256 under a
// key that is beside the records and leaves the directory with none of them. It is 16 hexadecimal digits.
func (w *Writer) Seal(secret string) (string, error) {
	w.sealing.Lock()
	defer w.sealing.Unlock()
	if w.key == nil {
		key, err := w.state.key()
		if err != nil {
			return "", fmt.Errorf("cannot use the key of the state directory: %w", err)
		}
		w.key = key
	}
	mac := hmac.New(sha256.New, w.key)
	mac.Write([]byte(secret))
	return fmt.Sprintf("%x", mac.Sum(nil))[:16], nil
}

const keySize = 32

// key reads the key, and makes it if there is none.
func (s state) key() ([]byte, error) {
	path := filepath.Join(s.dir, "key")
	for try := 0; ; try++ {
		key, err := readRegular(path)
		if err == nil && len(key) != keySize {
			return nil, fmt.Errorf("%s has %d bytes, and should have %d: without it every secret counts as changed; move it away if that is meant", path, len(key), keySize)
		}
		if err == nil || !errors.Is(err, fs.ErrNotExist) || try > 0 {
			return key, err
		}
		if err := s.makeKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
}

func (s state) makeKey(path string) (err error) {
	key := make([]byte, keySize)
	rand.Read(key)
	temporary := filepath.Join(s.dir, ".key."+rand.Text())
	f, err := s.disk.open(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	defer s.disk.remove(temporary)
	defer f.Close()
	if _, err := f.Write(key); err != nil {
		return err
	}
	if err := f.datasync(); err != nil {
		return err
	}
	// Unlike a rename, a link never replaces another one's key.
	if err := s.disk.link(temporary, path); err != nil {
		return err
	}
	return s.disk.syncDir(s.dir)
}
