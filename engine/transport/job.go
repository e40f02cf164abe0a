package transport

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// Job is a command that belongs to its host and not to the connection: it goes on when that is lost, or the controller is, and
// whoever asks for the same ID later gets its outcome instead of starting it again.
type Job struct {
	ID string // letters, digits, dots, dashes and underscores; unique on the host
	// Cmd is the command. Its User owns the job: nobody else but root can see it. Its input is read whole before it is sent. Of each
	// output stream the host keeps DefaultLimit bytes, or Limit if that is more, and counts the rest. With Stdout, its output
	// streams there from the beginning, also when the job was found; who starts it so has all of it kept. Timeout counts from the
	// job's start. Bulk and Sent mean nothing.
	Cmd Cmd
}

// NewJobID returns an ID that no other job has.
func NewJobID() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}

var jobID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// JobLostError says that a job was started and is over, and nobody knows how it ended or how far it got: the host was restarted, its
// processes were killed, or it was ended on request. Whether what it was to do has been done has to be found out by looking.
type JobLostError struct {
	ID     string
	Why    string
	Output Output // what it had written
}

func (e *JobLostError) Error() string {
	return fmt.Sprintf("cannot tell how far the job %s got: %s", e.ID, e.Why)
}

// JobState is how a job is on its host.
type JobState string

const (
	JobNone    JobState = "none"    // never started, or removed
	JobRunning JobState = "running" // its processes live
	JobEnded   JobState = "ended"   // its outcome waits to be collected
	JobLost    JobState = "lost"    // it was started and is over, and its outcome is not known
)

// Between two looks at a job that runs passes a tenth of its age, within these limits.
const (
	jobLookFirst = 200 * time.Millisecond
	jobLookLast  = time.Second
)

// jobChunk is how much of each output stream one look takes along.
const jobChunk = 1 << 20

// jobPatience is how long ending a job may take after ctx has ended.
const jobPatience = 20 * time.Second

// RunJob starts job unless it is there, waits until it has ended and returns its outcome, as Conn.Run does; what it left on the host
// stays until RemoveJob. progress, if not nil, gets the last line that it wrote whenever that is another one. It looks with
// short commands, so that others use the user's shell meanwhile.
//
// A link that is lost leaves the job running: *UnreachableError with MayHave. The job's timeout ends it, and so does ctx,
// whatever the cause: somebody who interrupts wants it ended. *JobLostError says that it was over without an outcome, also if it was
// an earlier call that ended it: the caller looks what has been done, and begins anew with another ID or after RemoveJob.
func RunJob(ctx context.Context, r Runner, job Job, progress func(line string)) (Output, error) {
	c := job.Cmd
	if err := c.validate(); err != nil {
		return Output{}, err
	}
	start, err := job.start()
	if err != nil {
		return Output{}, err
	}
	w := &jobWatch{job: job, runner: r, progress: progress}
	w.kept.limit = cmp.Or(max(c.Limit, 0), DefaultLimit)
	w.errs.limit = w.kept.limit
	found, err := w.follow(ctx, start)
	switch {
	case err != nil:
		return w.output(0), err
	case found.state == JobNone:
		return w.output(0), &JobLostError{ID: job.ID, Why: "somebody removed it from the host", Output: w.output(0)}
	case found.state == JobLost:
		return w.output(0), &JobLostError{ID: job.ID, Why: found.why, Output: w.output(0)}
	}
	out := w.output(found.code)
	if found.code != 0 {
		return out, &ExitError{Output: out}
	}
	return out, nil
}

// AwaitJob waits while a job of user runs, and says how it is then: what RunJob would return at once. progress and what ends it
// are as there.
func AwaitJob(ctx context.Context, r Runner, user, id string, progress func(line string)) (JobState, error) {
	w := &jobWatch{job: Job{ID: id, Cmd: Cmd{User: user, Stdout: io.Discard}}, runner: r, progress: progress}
	found, err := w.follow(ctx, nil)
	return found.state, err
}

// follow starts the job if start is set, and looks at it until it does not run any more.
func (w *jobWatch) follow(ctx context.Context, start *jobStart) (jobFound, error) {
	limit := w.job.Cmd.Timeout
	var deadline time.Time
	if limit > 0 {
		deadline = time.Now().Add(limit)
	}
	for first := true; ; first = false {
		request := start
		if !first {
			request = nil
		}
		found, err := w.look(ctx, request)
		var lost *UnreachableError
		var write *writeError
		switch {
		case errors.As(err, &lost):
			return jobFound{}, w.goesOn(lost)
		case ctx.Err() != nil:
			_ = w.end(ctx, "cancel") // it is under way still, if it cannot be ended
			return jobFound{}, ctx.Err()
		case errors.As(err, &write):
			_ = w.end(ctx, "cancel")
			return jobFound{}, fmt.Errorf("cannot pass on a command's output: %w", write.err)
		case err != nil:
			return jobFound{}, err
		}
		if first && limit > 0 {
			deadline = deadline.Add(-time.Duration(found.age) * time.Second)
		}
		late := !deadline.IsZero() && !time.Now().Before(deadline)
		switch {
		case found.state == JobRunning && late:
			if err := w.end(ctx, "timeout"); err != nil {
				return jobFound{}, err
			}
			return jobFound{}, &TimeoutError{After: limit, Output: w.output(0)}
		case found.more:
			continue
		case found.state != JobRunning:
			return found, nil
		}
		pause := min(max(time.Duration(found.age)*time.Second/10, jobLookFirst), jobLookLast)
		if !deadline.IsZero() {
			pause = min(pause, time.Until(deadline))
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done(): // the next look says so
			timer.Stop()
		}
	}
}

// FindJob says how a job of user is, without waiting.
func FindJob(ctx context.Context, r Runner, user, id string) (JobState, error) {
	w := &jobWatch{job: Job{ID: id, Cmd: Cmd{User: user}}, runner: r, skip: true}
	found, err := w.look(ctx, nil)
	return found.state, err
}

// RemoveJob removes what a job of user left on the host. The caller has its outcome, and has put it where it lasts. A job
// that is not there is no error; one that still runs is.
func RemoveJob(ctx context.Context, r Runner, user, id string) error {
	if err := checkJobID(id); err != nil {
		return err
	}
	_, err := r.Run(ctx, Cmd{Script: "id=" + id + "\n" + jobRemove, User: user, Sent: func() {}})
	if exit := (*ExitError)(nil); errors.As(err, &exit) {
		return fmt.Errorf("cannot remove the job %s: %s", id, firstLine(exit.Output.Stderr))
	}
	return err
}

// endJob ends a job's processes, and has its state say why. One that does not run is no error.
func endJob(ctx context.Context, r Runner, user, id, reason string) error {
	if err := checkJobID(id); err != nil {
		return err
	}
	// In a session of its own: the user's shell may be busy with something long.
	_, err := r.Run(ctx, Cmd{Script: "id=" + id + " reason=" + reason + "\n" + jobEnd, User: user, Bulk: true, Sent: func() {}})
	return err
}

func checkJobID(id string) error {
	if !jobID.MatchString(id) {
		return fmt.Errorf("cannot use %q as the ID of a job", id)
	}
	return nil
}

// jobStart is what it takes to start a job.
type jobStart struct {
	script string
	input  []byte
}

// start makes the sh text that starts the job.
func (j *Job) start() (*jobStart, error) {
	if err := checkJobID(j.ID); err != nil {
		return nil, err
	}
	s := &jobStart{}
	if j.Cmd.Stdin != nil {
		var err error
		if s.input, err = io.ReadAll(j.Cmd.Stdin); err != nil {
			return nil, fmt.Errorf("cannot read a command's input: %w", err)
		}
	}
	body := j.Cmd.setting()
	if j.Cmd.Script != "" {
		body += "exec /bin/sh /proc/self/fd/8"
	} else {
		body += "exec " + quoteAll(j.Cmd.Args) + " 8<&-"
	}
	limit := max(j.Cmd.Limit, DefaultLimit)
	if j.Cmd.Stdout != nil {
		limit = 1 << 60
	}
	s.script = fmt.Sprintf("mask=$(umask) start=1 limit=%d text=%s\nsupervisor=%s\n", limit, Quote(j.Cmd.Script), Quote(fmt.Sprintf(jobSupervisor, body)))
	return s, nil
}

// jobWatch is a job as it is followed.
type jobWatch struct {
	job      Job
	runner   Runner
	progress func(line string)
	begun    bool // it was seen on the host
	skip     bool // its output is nobody's business

	out, err   int64 // how much of each stream has been read
	kept, errs output
	over       int64  // what the host has not kept
	line       []byte // the last line, as far as it has come
	shown      string
	ends       [2]string // the last line of what the host has not kept, of each stream
}

// jobFound is what a look at a job found.
type jobFound struct {
	state JobState
	why   string // it is lost
	code  int    // exit status
	age   int    // seconds since its start
	more  bool   // there is more output to be read
}

// look asks the host for the job, with what it takes to start it if that is to be done, and takes its output along.
func (w *jobWatch) look(ctx context.Context, start *jobStart) (jobFound, error) {
	if err := checkJobID(w.job.ID); err != nil {
		return jobFound{}, err
	}
	text, pauses, most := "start=\n", "", jobChunk
	c := Cmd{User: w.job.Cmd.User, Limit: jobChunk + 1024, Sent: func() {}}
	if start != nil {
		text, pauses = start.script, "0.02 0.05 0.1 0.2" // most are short after all
		c.Stdin = bytes.NewReader(start.input)
	}
	if w.skip {
		most = 0
	}
	// What is over the limit need not be fetched to be counted.
	skipped := func(from int64, kept *output) int64 {
		if int64(len(kept.kept)) >= kept.limit {
			return 1 << 60
		}
		return from
	}
	out := w.out
	if w.job.Cmd.Stdout == nil {
		out = skipped(out, &w.kept)
	}
	errs, tail := skipped(w.err, &w.errs), ""
	if w.progress != nil {
		tail = "1"
	}
	c.Script = fmt.Sprintf("id=%s out=%d err=%d max=%d tail=%s pauses=%s\n", w.job.ID, out, errs, most, tail, Quote(pauses)) + text + jobLook
	answer, err := w.runner.Run(ctx, c)
	if exit := (*ExitError)(nil); errors.As(err, &exit) {
		verb := "start"
		if start == nil {
			verb = "look at"
		}
		return jobFound{}, fmt.Errorf("cannot %s the job %s: %s", verb, w.job.ID, cmp.Or(firstLine(exit.Output.Stderr), exit.Error()))
	}
	if err != nil {
		return jobFound{}, err
	}
	line, rest, _ := bytes.Cut(answer.Stdout, []byte("\n"))
	var status, rc, why, how string
	var outSize, errSize, outOver, errOver int64
	var f jobFound
	if n, _ := fmt.Sscanf(string(line), "job %s %s %s %d %d %d %d %d %s", &status, &rc, &why, &f.age, &outSize, &errSize, &outOver, &errOver, &how); n < 8 {
		return jobFound{}, fmt.Errorf("cannot understand what the host says of the job %s: %.100q", w.job.ID, line)
	}
	w.begun = w.begun || status != string(JobNone)
	f.age = max(f.age, 0)
	switch {
	case status == "none":
		f.state = JobNone
	case status == "running":
		f.state = JobRunning
	case status == "restarted":
		f.state, f.why = JobLost, "the host was restarted while it ran"
	case why == "timeout":
		f.state, f.why = JobLost, "it was ended at its timeout"
	case why == "cancel":
		f.state, f.why = JobLost, "it was ended on request"
	case why == "signal":
		f.state, f.why = JobLost, "a signal ended it from outside, as at a shutdown, or when its user logs out of a host that ends what users leave behind"
	case status == "gone":
		f.state, f.why = JobLost, "its processes were killed"
	default:
		f.state = JobEnded
		if _, err := fmt.Sscan(rc, &f.code); err != nil {
			return jobFound{}, fmt.Errorf("cannot understand the exit status of the job %s: %.100q", w.job.ID, rc)
		}
	}
	if w.skip {
		return f, nil
	}
	w.over = outOver + errOver
	part := func(data []byte, from, size int64) (ours, end []byte) {
		n := min(max(size-from, 0), int64(most), int64(len(data)))
		return data[:n], data[n:]
	}
	outPart, outEnd := part(rest, out, outSize)
	errPart, errEnd := part(answer.Stderr, errs, errSize)
	if err := w.take(outPart, errPart, outSize, errSize); err != nil {
		return f, err
	}
	w.readEnd(0, outEnd)
	w.readEnd(1, errEnd)
	w.show()
	f.more = w.out < outSize || w.err < errSize
	return f, nil
}

// take adds what has come to the output.
func (w *jobWatch) take(out, errs []byte, outSize, errSize int64) error {
	w.errs.add(errs, &w.err, errSize)
	w.read(errs)
	w.read(out)
	if w.job.Cmd.Stdout == nil {
		w.kept.add(out, &w.out, outSize)
		return nil
	}
	w.out += int64(len(out))
	if _, err := w.job.Cmd.Stdout.Write(out); err != nil {
		return &writeError{err}
	}
	return nil
}

// add keeps data, which begins at *at of a stream that has size bytes by now. What is not fetched because it is over the limit
// is counted.
func (o *output) add(data []byte, at *int64, size int64) {
	_, _ = o.Write(data)
	*at += int64(len(data))
	if int64(len(o.kept)) >= o.limit && *at < size {
		o.dropped += size - *at
		*at = size
	}
}

// read keeps the last line that holds anything.
func (w *jobWatch) read(data []byte) {
	const longest = 4096
	for len(data) > 0 {
		i := bytes.IndexAny(data, "\r\n")
		end := i
		if i < 0 {
			end = len(data)
		}
		w.line = append(w.line, data[max(0, end-longest):end]...)
		w.line = w.line[max(0, len(w.line)-longest):]
		if i < 0 {
			return
		}
		if text := strings.TrimSpace(string(w.line)); text != "" {
			w.shown = text
		}
		w.line, data = w.line[:0], data[i+1:]
	}
}

// readEnd shows the last whole line of what the host has not kept of a stream, if it is another than before.
func (w *jobWatch) readEnd(stream int, data []byte) {
	if len(data) == 0 {
		return
	}
	w.line = w.line[:0] // it went on in what is not kept
	was := w.shown
	w.shown = ""
	w.read(data)
	w.line = w.line[:0]
	if w.shown == "" || w.shown == w.ends[stream] {
		w.shown = was
		return
	}
	w.ends[stream] = w.shown
}

func (w *jobWatch) show() {
	if w.progress != nil && w.shown != "" {
		w.progress(w.shown)
		w.shown = ""
	}
}

// output is what has been kept.
func (w *jobWatch) output(code int) Output {
	return Output{Stdout: w.kept.kept, Stderr: w.errs.kept, Code: code, Dropped: w.kept.dropped + w.errs.dropped + w.over}
}

// goesOn is the loss of the host on which the job goes on.
func (w *jobWatch) goesOn(lost *UnreachableError) error {
	one := *lost
	one.MayHave = one.MayHave || w.begun
	if w.begun && one.Advice == "" {
		one.Advice = "the job " + w.job.ID + " goes on there"
	}
	return &one
}

// end ends the job and takes the rest of its output along. With a host that cannot be reached the job goes on, and the error says so.
func (w *jobWatch) end(ctx context.Context, reason string) error {
	whole := context.WithoutCancel(ctx)
	ctx, cancel := context.WithTimeout(whole, jobPatience)
	defer cancel()
	err := endJob(ctx, w.runner, w.job.Cmd.User, w.job.ID, reason)
	if ctx.Err() != nil && reason == "timeout" { // until the link is known to be good or lost
		_, err = w.runner.Run(whole, Cmd{Script: ":", User: w.job.Cmd.User})
	}
	var lost *UnreachableError
	if errors.As(err, &lost) {
		return w.goesOn(lost)
	}
	for range 1000 {
		if found, err := w.look(ctx, nil); err != nil || !found.more {
			return nil
		}
	}
	return nil
}
