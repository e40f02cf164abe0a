package journal

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// CorruptError says where a record stops being what was written.
type CorruptError struct {
	Path   string
	Offset int64 // of the line
	N      int   // of the record that should stand there
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("the journal %s is damaged at byte %d, record %d: %s", e.Path, e.Offset, e.N, e.Reason)
}

// FormatError says that a record is whole, but of a format that this program does not know.
type FormatError struct {
	Path, Version string
	Format        int
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("the journal %s has format %d, of runbook %s: this one reads format %d", e.Path, e.Format, e.Version, Format)
}

// A line ends with its sum, which has 16 hexadecimal digits.
const (
	sumHead = `,"sum":"`
	sumTail = `"}`
	sumLen  = 16
	endLen  = len(sumHead) + sumLen + len(sumTail)
)

func chain(before string, body []byte) string {
	h := sha256.New()
	io.WriteString(h, before)
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))[:sumLen]
}

// sumOf returns what a line, without its newline, says of its own sum.
func sumOf(line []byte) (body []byte, sum string, ok bool) {
	if len(line) < endLen {
		return nil, "", false
	}
	body, end := line[:len(line)-endLen], line[len(line)-endLen:]
	if !bytes.HasPrefix(end, []byte(sumHead)) || !bytes.HasSuffix(end, []byte(sumTail)) {
		return nil, "", false
	}
	return body, string(end[len(sumHead) : len(sumHead)+sumLen]), true
}

// holds returns the sum of a line that fits behind the one whose sum is before.
func holds(line []byte, before string) (sum string, ok bool) {
	body, sum, ok := sumOf(line)
	return sum, ok && chain(before, body) == sum
}

// unnumbered is how every record begins whose number and time are still to come.
const unnumbered = `{"n":0,"time":"0001-01-01T00:00:00Z",`

// content is r as JSON without number, time and end. It is the part that can be large, and needs no lock.
func content(r Record) ([]byte, error) {
	r.N, r.Time = 0, time.Time{}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(b.Bytes(), []byte(unnumbered))
	if !ok {
		return nil, errors.New("a record has an unexpected form")
	}
	return bytes.TrimSuffix(rest, []byte("}\n")), nil
}

// appendLine appends the line of a record to b.
func appendLine(b []byte, before string, n int, at time.Time, content []byte) (_ []byte, sum string, err error) {
	when, err := at.UTC().MarshalJSON()
	if err != nil {
		return b, "", err
	}
	start := len(b)
	b = fmt.Appendf(b, `{"n":%d,"time":%s,`, n, when)
	b = append(b, content...)
	sum = chain(before, b[start:])
	b = append(b, sumHead+sum+sumTail+"\n"...)
	if len(b)-start > MaxLine {
		return b[:start], "", fmt.Errorf("a record of %d bytes is longer than the %d a line may have", len(b)-start, MaxLine)
	}
	return b, sum, nil
}

// reader reads a journal line by line.
type reader struct {
	path   string
	in     *bufio.Reader
	line   []byte
	offset int64 // of the next line
	n      int   // records read
	sum    string
	last   Kind // of the last record that was decoded
	torn   int
}

func newReader(in io.Reader, path string) *reader {
	return &reader{path: path, in: bufio.NewReaderSize(in, 64<<10)}
}

func (r *reader) corrupt(reason string) error {
	return &CorruptError{Path: r.path, Offset: r.offset, N: r.n + 1, Reason: reason}
}

// next returns the next line that holds, without its newline, valid until the next call. At the end it returns io.EOF, and torn says how many
// bytes are to be dropped.
func (r *reader) next() ([]byte, error) {
	r.line = r.line[:0]
	for {
		part, err := r.in.ReadSlice('\n')
		if len(r.line)+len(part) > MaxLine {
			return nil, r.corrupt(fmt.Sprintf("a line is longer than %d bytes", MaxLine))
		}
		r.line = append(r.line, part...)
		if err == nil {
			break
		}
		if errors.Is(err, io.EOF) {
			return nil, r.end()
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, unreadable(r.path, err)
		}
	}
	line := r.line[:len(r.line)-1]
	sum, ok := holds(line, r.sum)
	if !ok {
		return nil, r.corrupt("the line does not fit its sum, or not the line before")
	}
	r.sum = sum
	r.offset += int64(len(r.line))
	r.n++
	return line, nil
}

// end tells a line that was being written from one whose newline was damaged afterwards.
func (r *reader) end() error {
	for at := 0; ; {
		next := bytes.Index(r.line[at:], []byte(sumHead))
		if next < 0 {
			break
		}
		end := at + next + endLen
		if end >= len(r.line) {
			break
		}
		if _, whole := holds(r.line[:end], r.sum); whole {
			return r.corrupt(fmt.Sprintf("the line is whole, but ends in %q and not in a newline", r.line[end]))
		}
		at += next + len(sumHead)
	}
	if r.n == 0 {
		return r.corrupt("there is no whole record in it")
	}
	r.torn = len(r.line)
	return io.EOF
}

// decode makes a record of the line that next has just returned.
func (r *reader) decode(line []byte) (rec Record, err error) {
	wrong := func(reason string) error {
		return &CorruptError{Path: r.path, Offset: r.offset - int64(len(line)) - 1, N: r.n, Reason: reason}
	}
	if err := json.Unmarshal(line, &rec); err != nil {
		return Record{}, wrong(err.Error())
	}
	if r.n == 1 && rec.Run != nil && rec.Run.Format != Format {
		return Record{}, &FormatError{Path: r.path, Version: rec.Run.Version, Format: rec.Run.Format}
	}
	if err := rec.follows(r.last, r.n); err != nil {
		return Record{}, wrong(err.Error())
	}
	r.last = rec.Kind
	return rec, nil
}

// each calls f for every record to the end.
func (r *reader) each(f func(Record) error) error {
	for {
		line, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		rec, err := r.decode(line)
		if err != nil {
			return err
		}
		if err := f(rec); err != nil {
			return err
		}
	}
}
