package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"
)

// Where is the path of a state directory, as of Dir, which is not touched.
func Where(stateDir string) (string, error) {
	s, err := at(stateDir)
	return s.dir, err
}

// Read returns the record of a run, and how many bytes of a torn last line there are behind it. With a *CorruptError come the records before
// the damage: they may be looked at, and must not be built upon.
func Read(stateDir, id string) (recs []Record, torn int, err error) {
	torn, err = Each(stateDir, id, func(r Record) error { recs = append(recs, r); return nil })
	return recs, torn, err
}

// Each is Read for who does not need all records at once.
func Each(stateDir, id string, f func(Record) error) (torn int, err error) {
	s, err := at(stateDir)
	if err != nil {
		return 0, err
	}
	path, _, err := s.find(id)
	if err != nil {
		return 0, err
	}
	in, err := openRecord(path)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	r := newReader(in, path)
	err = r.each(func(rec Record) error {
		if rec.Run != nil && rec.Run.ID != id {
			return fmt.Errorf("cannot read the run %s: %s is the record of %s", id, path, rec.Run.ID)
		}
		return f(rec)
	})
	return r.torn, err
}

// What else Info.Status can be than how a run was closed.
const (
	Running = "running"
	Dead    = "dead"    // its writer died
	Corrupt = "corrupt" // or of a format that this program does not read, or not to be read at all: Info.Err tells
)

// Info is a run as a list shows it.
type Info struct {
	ID        string
	Path      string
	Started   time.Time
	Ended     time.Time // of the last record; zero while it runs
	Run       Run
	Status    string
	Size      int64
	Resumable bool
	Imported  bool
	Writer    *LockedError // who works on it, if somebody does
	Close     *Close       // if that is the last record
	Records   int
	Err       error
}

// Began is when the run was started by the clock of its controller; where its record cannot tell, its id does.
func (i Info) Began() time.Time {
	if !i.Started.IsZero() || len(i.ID) < len(idTime) {
		return i.Started
	}
	at, _ := time.Parse(idTime, i.ID[:len(idTime)])
	return at
}

// List returns all runs, the newest first. The chain of each is verified from end to end: of a damaged one nothing is believed but how it began.
func List(stateDir string) ([]Info, error) {
	s, err := at(stateDir)
	if err != nil {
		return nil, err
	}
	return s.list()
}

func (s state) list() ([]Info, error) {
	var out []Info
	for _, imported := range []bool{false, true} {
		dir, path := s.runs(), s.path
		if imported {
			dir, path = s.imported(), s.foreign
		}
		all, err := ids(dir)
		if err != nil {
			return nil, err
		}
		for _, id := range all {
			info, err := look(id, path(id), imported) // one that cannot be believed, or read, hides none of the others
			if errors.Is(err, fs.ErrNotExist) {
				continue // pruned since
			}
			info.Err = err
			if info.Writer != nil {
				info.Writer = s.locked(id)
			}
			out = append(out, info)
		}
	}
	return newestFirst(out), nil
}

// newestFirst orders runs by their numbers. Those without one that counts here, which were made elsewhere or are damaged in their first line, stand
// between them by the time.
func newestFirst(all []Info) []Info {
	var numbered, others []Info
	for _, info := range all {
		if info.Imported || info.Run.Seq == 0 {
			others = append(others, info)
		} else {
			numbered = append(numbered, info)
		}
	}
	// An id has the second only.
	later := func(a, b Info) int { return cmp.Or(b.Began().Compare(a.Began()), cmp.Compare(b.ID, a.ID)) }
	slices.SortFunc(numbered, func(a, b Info) int { return cmp.Or(cmp.Compare(b.Run.Seq, a.Run.Seq), later(a, b)) })
	slices.SortFunc(others, later)
	var out []Info
	for _, info := range numbered {
		for len(others) > 0 && later(others[0], info) < 0 {
			out, others = append(out, others[0]), others[1:]
		}
		out = append(out, info)
	}
	return append(out, others...)
}

// lastSeq is the highest number of a run; of damaged ones none is known.
func (s state) lastSeq() (last int, err error) {
	all, err := ids(s.runs())
	if err != nil {
		return 0, err
	}
	for _, id := range all {
		in, err := openRecord(s.path(id))
		if errors.Is(err, fs.ErrNotExist) {
			continue // pruned since
		}
		if err != nil {
			return 0, err
		}
		r := newReader(in, s.path(id))
		if line, err := r.next(); err == nil {
			if rec, err := r.decode(line); err == nil && rec.Run != nil {
				last = max(last, rec.Run.Seq)
			}
		}
		in.Close()
	}
	return last, nil
}

// look verifies a record, and decodes its first line and its last. With an error comes what can be believed.
func look(id, path string, imported bool) (Info, error) {
	info := Info{ID: id, Path: path, Imported: imported, Status: Corrupt}
	// Whether a writer lives is asked first: one that closes meanwhile has its last record read.
	live, err := writerLives(path)
	if err != nil {
		return info, err
	}
	if live {
		info.Writer = &LockedError{ID: id}
	}
	in, err := openRecord(path)
	if err != nil {
		return info, err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return info, unreadable(path, err)
	}
	info.Size = st.Size()
	r := newReader(io.NewSectionReader(in, 0, info.Size), path)
	line, err := r.next()
	if errors.Is(err, io.EOF) {
		err = r.corrupt("there is no whole record in it")
	}
	var first, last Record
	if err == nil {
		first, err = r.decode(line)
	}
	if err == nil && first.Run.ID != id {
		err = fmt.Errorf("%s is the record of %s", path, first.Run.ID)
	}
	if err == nil {
		info.Run, info.Started = *first.Run, first.Time
		last, err = lastRecord(r, line)
	}
	if err != nil {
		return info, err
	}
	info.Records = last.N
	info.Close = last.Close
	switch {
	case last.Close != nil:
		info.Status, info.Ended = last.Close.Status, last.Time
	case live:
		info.Status = Running
	default:
		info.Status, info.Ended = Dead, last.Time
	}
	info.Resumable = !live && !imported && !Over(info.Status)
	return info, nil
}

// lastRecord reads on to the end, so that damage anywhere is found, and decodes the last line alone. r has read the first one.
func lastRecord(r *reader, first []byte) (Record, error) {
	last := bytes.Clone(first)
	for {
		line, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Record{}, err
		}
		last = append(last[:0], line...)
	}
	rec, err := peek(last)
	if err == nil && rec.N != r.n {
		err = fmt.Errorf("record %d stands where %d should", rec.N, r.n)
	}
	if err != nil {
		return Record{}, &CorruptError{Path: r.path, Offset: r.offset - int64(len(last)) - 1, N: r.n, Reason: err.Error()}
	}
	return rec, nil
}
