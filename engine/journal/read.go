package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

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
	in, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("cannot read the journal: %w", err)
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

// What else Info.Status can be than Done, Failed and Interrupted.
const (
	Running = "running"
	Dead    = "dead"    // its writer died
	Corrupt = "corrupt" // or of a format that this program does not read: Info.Err tells
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
	Close     *Close // if that is the last record
	Records   int
	Err       error
}

// List returns all runs, the newest first. It reads the first and the last line of each, so damage in between is not seen here.
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
			info, err := look(id, path(id), imported)
			if errors.Is(err, fs.ErrNotExist) {
				continue // pruned since
			}
			if err != nil {
				return nil, err
			}
			out = append(out, info)
		}
	}
	// An id has the second only.
	slices.SortFunc(out, func(a, b Info) int { return cmp.Or(b.Started.Compare(a.Started), cmp.Compare(b.ID, a.ID)) })
	return out, nil
}

// look reads the ends of a record.
func look(id, path string, imported bool) (Info, error) {
	info := Info{ID: id, Path: path, Imported: imported, Status: Corrupt}
	// Whether a writer lives is asked first: one that closes meanwhile has its last record read.
	live, err := writerLives(path)
	if err != nil {
		return info, fmt.Errorf("cannot look at the run %s: %w", id, err)
	}
	in, err := os.Open(path)
	if err != nil {
		return info, fmt.Errorf("cannot look at the run %s: %w", id, err)
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return info, fmt.Errorf("cannot look at the run %s: %w", id, err)
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
		last, err = lastRecord(in, info.Size, r)
	}
	if err != nil {
		info.Err = err
		return info, nil
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
	info.Resumable = !live && !imported && info.Status != Done
	return info, nil
}

// lastRecord reads a file from its end. r has read the first line.
func lastRecord(in io.ReaderAt, size int64, r *reader) (Record, error) {
	for window := int64(64 << 10); ; window *= 4 {
		start := max(0, size-window)
		tail := make([]byte, size-start)
		if _, err := in.ReadAt(tail, start); err != nil && !errors.Is(err, io.EOF) {
			return Record{}, fmt.Errorf("cannot read the journal %s: %w", r.path, err)
		}
		end := bytes.LastIndexByte(tail, '\n') // of the last whole line; what is behind is torn
		begin := -1
		if end >= 0 {
			begin = bytes.LastIndexByte(tail[:end], '\n') + 1
		}
		// The line before the last is needed too, for its sum.
		if begin < endLen+1 && start > 0 {
			if window > 2*MaxLine {
				return Record{}, &CorruptError{Path: r.path, Offset: start, Reason: fmt.Sprintf("a line is longer than %d bytes", MaxLine)}
			}
			continue
		}
		l := newReader(bytes.NewReader(tail[max(begin, 0):]), r.path)
		l.offset = start + int64(max(begin, 0))
		if begin > 0 {
			var ok bool
			if _, l.sum, ok = sumOf(tail[:begin-1]); !ok {
				return Record{}, l.corrupt("the line before has no sum")
			}
		}
		line, err := l.next()
		if err != nil {
			return Record{}, err
		}
		rec, err := peek(line)
		if err != nil {
			return Record{}, l.corrupt(err.Error())
		}
		if _, err := l.next(); err != nil && !errors.Is(err, io.EOF) { // its newline may be what is damaged
			return Record{}, err
		}
		return rec, nil
	}
}
