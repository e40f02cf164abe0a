package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// An export is the lines of a record and, behind them, one that says how many they are: a file that was cut short on its way between two
// lines would look whole without it.
const exportHead = `{"export":`

func exportEnd(id string, r *reader) string {
	return fmt.Sprintf(exportHead+`%d,"id":"%s","records":%d,"sum":"%s"}`+"\n", Format, id, r.n, r.sum)
}

// Export writes the record of a run as one file. Of a run that is being written it is what there is so far.
func Export(stateDir, id string, w io.Writer) error {
	s, err := at(stateDir)
	if err != nil {
		return err
	}
	path, _, err := s.find(id)
	if err != nil {
		return err
	}
	in, err := openRecord(path)
	if err != nil {
		return err
	}
	defer in.Close()
	r, out := newReader(in, path), bufio.NewWriter(w)
	for {
		line, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if rec, err := r.decode(line); err != nil {
			return err
		} else if rec.Run != nil && rec.Run.ID != id {
			return fmt.Errorf("cannot export the run %s: %s is the record of %s", id, path, rec.Run.ID)
		}
		out.Write(line)
		out.WriteByte('\n')
	}
	out.WriteString(exportEnd(id, r))
	if err := out.Flush(); err != nil {
		return fmt.Errorf("cannot export the run %s: %w", id, err)
	}
	return nil
}

// Import takes up what Export wrote, to be read here: a run that was imported cannot be gone on with, and what it owes is owed where it ran.
func Import(stateDir string, r io.Reader) (id string, err error) {
	s, err := at(stateDir)
	if err != nil {
		return "", err
	}
	return s.importRun(r)
}

func (s state) importRun(from io.Reader) (id string, err error) {
	if err := s.make(); err != nil {
		return "", err
	}
	if err := s.mkdirAll(s.imported()); err != nil {
		return "", fmt.Errorf("cannot import a run: %w", err)
	}
	if err := private(s.imported()); err != nil {
		return "", err
	}
	temporary := filepath.Join(s.imported(), "."+newID(time.Now())+".new")
	f, err := s.disk.open(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return "", fmt.Errorf("cannot import a run: %w", err)
	}
	defer s.disk.remove(temporary)
	defer f.Close()
	id, err = copyExport(f, from)
	if err != nil {
		return "", err
	}
	if path, _, err := s.find(id); err == nil {
		return "", fmt.Errorf("cannot import the run %s: it is here already, as %s: %w", id, path, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := f.datasync(); err != nil {
		return "", fmt.Errorf("cannot import the run %s: %w", id, err)
	}
	if err := s.disk.link(temporary, s.foreign(id)); err != nil {
		return "", fmt.Errorf("cannot import the run %s: %w", id, err)
	}
	if err := s.disk.syncDir(s.imported()); err != nil {
		return "", fmt.Errorf("cannot import the run %s: %w", id, err)
	}
	return id, nil
}

// copyExport copies the lines of an export that is whole.
func copyExport(to io.Writer, from io.Reader) (id string, err error) {
	r, out := newReader(from, "to import"), bufio.NewWriter(to)
	for {
		if head, _ := r.in.Peek(len(exportHead)); string(head) == exportHead && r.n > 0 {
			end := make([]byte, len(exportEnd(id, r))+1)
			n, err := io.ReadFull(r.in, end)
			if !errors.Is(err, io.ErrUnexpectedEOF) || string(end[:n]) != exportEnd(id, r) {
				return "", r.corrupt("the end of the export does not fit what is before it")
			}
			if err := out.Flush(); err != nil {
				return "", fmt.Errorf("cannot import the run %s: %w", id, err)
			}
			return id, nil
		}
		line, err := r.next()
		if errors.Is(err, io.EOF) {
			return "", r.corrupt("the end of the export is missing: the file was cut short, or was not made by an export")
		}
		if err != nil {
			return "", err
		}
		rec, err := r.decode(line)
		if err != nil {
			return "", err
		}
		if rec.Run != nil {
			if id = rec.Run.ID; !ValidID(id) {
				return "", r.corrupt(fmt.Sprintf("runs are not called %q", id))
			}
		}
		out.Write(line)
		if err := out.WriteByte('\n'); err != nil {
			return "", fmt.Errorf("cannot import the run %s: %w", id, err)
		}
	}
}
