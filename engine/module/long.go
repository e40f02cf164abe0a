package module

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"runbook/engine/transport"
)

// Long is a module whose Apply may take long. Its command is a job of the host then: it outlives the connection and the controller,
// and is found again. Apply runs it with Host.RunLong, and must bear being called again while the job of an earlier call waits to be
// collected (Host.LongState): what it does ahead of RunLong it must not do twice.
//
// Who goes on with a run that has begun such an Apply and not ended it calls AwaitLong with the same JobID. Where that finds an
// outcome, Check and Apply follow, Apply even if Check finds nothing to do, for only Apply knows what the outcome means. Where it
// finds that the job was lost, ForgetLong and a new JobID begin anew from Check.
type Long interface {
	// Detach tells the module, right after it was made, what its task says of `detach`.
	Detach(on bool)
	// Long says whether Apply has a job, with the arguments as they are.
	Long() bool
}

// LongStep is embedded by a module whose Apply is always long, unless its task says `detach: false`. Of what its command writes, the
// lines that begin with "P " show as progress: a text, or a number of bytes.
type LongStep struct{ attached bool }

func (*LongStep) marksProgress() {}

// Detach keeps what the task says.
func (l *LongStep) Detach(on bool) { l.attached = !on }

// Long says whether Apply has a job.
func (l *LongStep) Long() bool { return !l.attached }

// Runner is what Apply runs its command with.
func (l *LongStep) Runner(h *Host) func(context.Context, transport.Cmd) (transport.Output, error) {
	if l.attached {
		return h.Run
	}
	return func(ctx context.Context, c transport.Cmd) (transport.Output, error) { return h.runLong(ctx, c, true) }
}

// progressOf shows the lines that a job writes: those that are marked, or all.
func (h *Host) progressOf(marked bool) func(line string) {
	return func(line string) {
		text, is := strings.CutPrefix(line, "P ")
		if n, err := strconv.ParseInt(text, 10, 64); is && err == nil {
			text = fmt.Sprintf("%.0f MB so far", float64(n)/1e6)
		}
		if is == marked && text != "" {
			h.Progress(text)
		}
	}
}

// IsLong says whether m's Apply has a job, which Host.JobID names.
func IsLong(m Module) bool {
	l, ok := m.(Long)
	return ok && l.Long()
}

// RunLong runs c, as Run does, as the job JobID of the host; without a JobID it is Run. Where the job is there already,
// it gets that one's outcome. Its last line shows as progress. c.Stdout, if set, gets its output from the beginning.
//
// A lost link leaves the job running (*transport.UnreachableError). The task's timeout, which counts from the job's start,
// and an interrupt end it. *transport.JobLostError says that it ended without an outcome. An Apply has one job.
func (h *Host) RunLong(ctx context.Context, c transport.Cmd) (transport.Output, error) {
	return h.runLong(ctx, c, false)
}

func (h *Host) runLong(ctx context.Context, c transport.Cmd, marked bool) (transport.Output, error) {
	if h.JobID == "" {
		return h.Run(ctx, c)
	}
	if h.lastJob == h.JobID {
		return transport.Output{}, errors.New("cannot run a second long step in one Apply")
	}
	h.lastJob = h.JobID
	c, err := h.prepare(c)
	if err != nil {
		return transport.Output{}, err
	}
	progress := h.progressOf(marked)
	if c.Stdout != nil {
		progress = nil
	}
	job := transport.Job{ID: h.JobID, Cmd: c}
	if h.HoldFunc != nil {
		if err := h.HoldFunc(ctx, job); err != nil {
			return transport.Output{}, err
		}
	}
	out, err := transport.RunJob(ctx, h.Conn, job, progress)
	if lost := (*transport.UnreachableError)(nil); !h.KeepJob && !errors.As(err, &lost) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = h.ForgetLong(ctx) // what stays is removed in a month
	}
	return out, err
}

// LongState says how the job of this Apply is: JobNone where it is yet to be started, or there is no JobID.
func (h *Host) LongState(ctx context.Context) (transport.JobState, error) {
	if h.JobID == "" {
		return transport.JobNone, nil
	}
	return transport.FindJob(ctx, h.Conn, h.User, h.JobID)
}

// AwaitLong waits while m's job runs, and says how it is then.
func (h *Host) AwaitLong(ctx context.Context, m Module) (transport.JobState, error) {
	if h.JobID == "" {
		return transport.JobNone, nil
	}
	if h.Timeout > 0 { // what runs for longer than that is ended
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, h.Timeout)
		defer cancel()
	}
	_, marked := m.(interface{ marksProgress() })
	return transport.AwaitJob(ctx, h.Conn, h.User, h.JobID, h.progressOf(marked))
}

// ForgetLong removes what the job left on the host, where there is one: its outcome is where it lasts. One that still
// runs is an error.
func (h *Host) ForgetLong(ctx context.Context) error {
	if h.JobID == "" {
		return nil
	}
	return transport.RemoveJob(ctx, h.Conn, h.User, h.JobID)
}
