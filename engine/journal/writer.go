package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Writer writes the record of one run, and holds its lock. It may be used by many at once.
type Writer struct {
	Torn int // bytes of a torn last line that Open has cut off

	id, path string
	state    state
	f        file

	mu       sync.Mutex
	wake     *sync.Cond // a flush has ended
	buf      []byte     // lines that are not in the file yet
	spare    []byte     // the other buffer
	n        int        // records accepted
	safe     int        // records on disk
	sum      string     // of the n-th
	last     Kind
	flushing bool
	timer    *time.Timer // armed while Append has left something in buf
	err      error       // final
	closed   bool
	closeErr error

	reading sync.Mutex
	others  *others // guarded by reading

	sealing sync.Mutex
	key     []byte // nil: not read yet
}

const (
	lag     = time.Second // the most that a record waits after Append
	backlog = 1 << 20     // the most bytes that wait
)

var errClosed = errors.New("the journal is closed")

// Create begins the record of a run, and fills in its ID and Format. When it returns, the record is on disk under its name and the lock is held.
func Create(stateDir string, r Run) (*Writer, error) {
	s, err := at(stateDir)
	if err != nil {
		return nil, err
	}
	return s.create(r)
}

func (s state) create(r Run) (*Writer, error) {
	if r.ID != "" && !ValidID(r.ID) {
		return nil, fmt.Errorf("cannot begin a run %q: runs are called like 20261126-101530-k3f9", r.ID)
	}
	if err := s.make(); err != nil {
		return nil, err
	}
	last, err := s.lastSeq()
	if err != nil {
		return nil, err
	}
	r.Format, r.Seq = Format, last+1
	if r.ID != "" {
		w, err := s.createAs(r)
		if err != nil {
			return nil, fmt.Errorf("cannot begin the run %s: %w", r.ID, err)
		}
		return w, nil
	}
	for try := 1; ; try++ {
		r.ID = newID(time.Now())
		w, err := s.createAs(r)
		if errors.Is(err, fs.ErrExist) && try < 100 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot begin the run %s: %w", r.ID, err)
		}
		return w, nil
	}
}

// createAs writes the first record under a temporary name: whatever is called a run has a whole first record, and somebody who lists them
// finds it locked.
func (s state) createAs(r Run) (_ *Writer, err error) {
	if _, err := os.Lstat(s.foreign(r.ID)); err == nil {
		return nil, fmt.Errorf("a run of that name was imported: %w", fs.ErrExist)
	}
	temporary := s.temporary(r.ID)
	f, err := s.disk.open(temporary, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	made := []string{temporary}
	defer func() {
		if err != nil {
			for _, path := range made {
				s.disk.remove(path)
			}
			f.Close()
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("cannot lock the journal %s: %w", temporary, err)
	}
	w := s.writer(r.ID, f)
	if err := w.Commit(Record{Kind: KindRun, Run: &r}); err != nil {
		return nil, err
	}
	// Unlike a rename, a link never replaces another run.
	if err := s.disk.link(temporary, s.path(r.ID)); err != nil {
		return nil, err
	}
	made = append(made, s.path(r.ID), s.holder(r.ID))
	if err := s.sign(r.ID); err != nil {
		return nil, err
	}
	if err := s.disk.remove(temporary); err != nil {
		return nil, err
	}
	if err := s.disk.syncDir(s.runs()); err != nil {
		return nil, err
	}
	return w, nil
}

func (s state) writer(id string, f file) *Writer {
	w := &Writer{id: id, path: s.path(id), state: s, f: f}
	w.wake = sync.NewCond(&w.mu)
	return w
}

// Open goes on with the record of a run, and returns what is in it. The whole chain is verified; a torn last line is cut off. It returns a
// *LockedError while another process writes it, and a *CorruptError where the chain does not hold.
func Open(stateDir, id string) (*Writer, []Record, error) {
	s, err := at(stateDir)
	if err != nil {
		return nil, nil, err
	}
	return s.open(id)
}

func (s state) open(id string) (_ *Writer, _ []Record, err error) {
	path, imported, err := s.find(id)
	if err != nil {
		return nil, nil, err
	}
	if imported {
		return nil, nil, fmt.Errorf("cannot go on with the run %s: it was imported from another controller, to be read", id)
	}
	if err := s.make(); err != nil {
		return nil, nil, err
	}
	f, err := s.disk.open(path, os.O_RDWR|os.O_APPEND)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open the journal: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := s.lock(f, id); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			s.disk.remove(s.holder(id))
		}
	}()
	if err := sameFile(f, path); err != nil {
		return nil, nil, err
	}
	var recs []Record
	r := newReader(io.NewSectionReader(f, 0, 1<<62), path)
	if err := r.each(func(rec Record) error { recs = append(recs, rec); return nil }); err != nil {
		return nil, nil, err
	}
	if recs[0].Run.ID != id {
		return nil, nil, fmt.Errorf("cannot go on with the run %s: %s is the record of %s", id, path, recs[0].Run.ID)
	}
	if r.torn > 0 {
		if err := f.Truncate(r.offset); err != nil {
			return nil, nil, fmt.Errorf("cannot cut off the torn last line of the journal %s: %w", path, err)
		}
	}
	// What was read may never have reached the disk, and much will rest upon it.
	if err := f.datasync(); err != nil {
		return nil, nil, fmt.Errorf("cannot sync the journal %s: %w", path, err)
	}
	w := s.writer(id, f)
	w.Torn, w.n, w.safe, w.sum, w.last = r.torn, r.n, r.n, r.sum, r.last
	return w, recs, nil
}

// sameFile refuses a file that was pruned between its opening and its locking.
func sameFile(f file, path string) error {
	mine, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cannot open the journal: %w", err)
	}
	there, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("cannot open the journal: %w", err)
	}
	if !os.SameFile(mine, there) {
		return fmt.Errorf("cannot open the journal %s: another file has taken its place", path)
	}
	return nil
}

// ID returns the name of the run.
func (w *Writer) ID() string { return w.id }

// Path returns where the record is.
func (w *Writer) Path() string { return w.path }

// Append adds a record, which reaches the disk with the next Commit, or within a second.
func (w *Writer) Append(r Record) error {
	c, err := content(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.add(r, c, err); err != nil {
		return err
	}
	if len(w.buf) > backlog {
		return w.wait(w.n)
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(lag, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.timer = nil
			w.wait(w.n) // an error stays, and is told to the next caller
		})
	}
	return nil
}

// Commit adds a record, and returns when it and all before it are on disk. An error of Append or Commit is final: nothing is accepted after it.
func (w *Writer) Commit(r Record) error {
	c, err := content(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.add(r, c, err); err != nil {
		return err
	}
	return w.wait(w.n)
}

// add puts the line of r into the buffer. Who calls it holds mu.
func (w *Writer) add(r Record, content []byte, err error) error {
	if w.err != nil {
		return w.err
	}
	if r.N = w.n + 1; err == nil {
		err = r.follows(w.last, r.N)
	}
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	if err == nil {
		var sum string
		if w.buf, sum, err = appendLine(w.buf, w.sum, r.N, r.Time, content); err == nil {
			w.n, w.sum, w.last = r.N, sum, r.Kind
			return nil
		}
	}
	w.fail(err)
	return w.err
}

// fail makes err the answer to whatever comes.
func (w *Writer) fail(err error) {
	if w.err == nil {
		if e := (*fs.PathError)(nil); errors.As(err, &e) {
			err = fmt.Errorf("%s: %w", e.Op, e.Err) // its path comes before it
		}
		w.err = fmt.Errorf("cannot write the journal %s: %w", w.path, err)
	}
	w.wake.Broadcast()
}

// wait returns when the first n records are on disk. Whoever finds nobody flushing takes all that has gathered: those who come meanwhile share
// the next sync. Who calls it holds mu.
func (w *Writer) wait(n int) error {
	for w.safe < n && w.err == nil {
		if w.flushing {
			w.wake.Wait()
		} else {
			w.flush()
		}
	}
	if w.safe >= n {
		return nil
	}
	return w.err
}

func (w *Writer) flush() {
	buf, n := w.buf, w.n
	w.buf, w.spare, w.flushing = w.spare[:0], nil, true
	w.mu.Unlock()
	_, err := w.f.Write(buf)
	if err == nil {
		err = w.f.datasync()
	}
	w.mu.Lock()
	w.flushing = false
	if cap(buf) <= 2*backlog {
		w.spare = buf
	}
	if err != nil {
		w.fail(err)
		return
	}
	w.safe = n
	w.wake.Broadcast()
}

// Close puts on disk what is left, and gives up the lock.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return w.closeErr
	}
	w.closed = true
	w.closeErr = w.wait(w.n)
	if w.closeErr == nil {
		w.closeErr = w.err
	}
	w.fail(errClosed)
	for w.flushing {
		w.wake.Wait()
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	w.state.disk.remove(w.state.holder(w.id))
	if err := w.f.Close(); err != nil && w.closeErr == nil {
		w.closeErr = fmt.Errorf("cannot close the journal %s: %w", w.path, err)
	}
	return w.closeErr
}
