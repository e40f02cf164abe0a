package modules

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"time"

	"runbook/engine/module"
	"runbook/engine/transport"
)

func init() {
	register("wait_for", func() module.Module {
		return &waitFor{Host: "127.0.0.1", Timeout: 5 * time.Minute, Sleep: time.Second, ConnectTimeout: 5 * time.Second}
	})
}

// waitFor waits until a port answers or no longer does, or until a path appears or goes.
//
// Ports are tried from the host that the task is for. A check looks once: what is not so yet is expected if earlier tasks have changes
// to make, and unknown otherwise. Waiting is no change.
//
//	tasks:
//	  - name: the master's database answers through the tunnel
//	    wait_for:
//	      port: 3307
//	      search_regex: '(?i)mariadb|mysql|native|sha2'
//	      timeout: 15s
//	      msg: no MySQL greeting comes through the tunnel; `journalctl -u man06-stunnel` on both hosts says which end refuses
type waitFor struct {
	// Host name or address, seen from the task's host.
	Host string `yaml:"host"`
	// TCP port.
	Port int `yaml:"port"`
	// Path on the host, instead of a port.
	Path string `yaml:"path"`
	// What to wait for. started: the port accepts connections. stopped: it does not. present or absent: the path. Default: started or present.
	State string `yaml:"state" choices:"started,stopped,present,absent"`
	// Regular expression (RE2) that must match what the port says first, or what the file holds (its first MiB). Only for started and present.
	SearchRegex string `yaml:"search_regex"`
	// How long to wait at most.
	Timeout time.Duration `yaml:"timeout"`
	// How long to wait before the first look of a run.
	Delay time.Duration `yaml:"delay"`
	// Time between two looks.
	Sleep time.Duration `yaml:"sleep"`
	// Limit for one connection, and for the port to say what search_regex matches.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// Sentence for when the time is over.
	Msg string `yaml:"msg"`
}

// Validate refuses arguments that contradict each other.
func (w *waitFor) Validate() error {
	var errs []error
	refuse := func(arg, msg, hint string) { errs = append(errs, &module.ArgError{Path: arg, Msg: msg, Hint: hint}) }
	errs = append(errs, absolute("path", w.Path))
	if _, err := regexp.Compile(w.SearchRegex); err != nil {
		refuse("search_regex", err.Error(), "")
	}
	state := w.state()
	switch onPort := state == "started" || state == "stopped"; {
	case w.Port == 0 && w.Path == "":
		refuse("", "nothing to wait for", "give port or path")
	case w.Port != 0 && w.Path != "":
		refuse("path", "cannot be given together with port", "")
	case w.Port < 0 || w.Port > 65535:
		refuse("port", fmt.Sprintf("%d is no port", w.Port), "1 to 65535")
	case onPort != (w.Port != 0):
		refuse("state", state+" does not go with what is waited for", "started and stopped are for ports, present and absent for paths")
	case w.SearchRegex != "" && (state == "stopped" || state == "absent"):
		refuse("search_regex", "goes with started and present only", "")
	}
	if w.Sleep <= 0 {
		refuse("sleep", "must be more than nothing", "")
	}
	return errors.Join(errs...)
}

func (w *waitFor) state() string {
	switch {
	case w.State != "":
		return w.State
	case w.Path != "":
		return "present"
	}
	return "started"
}

func (w *waitFor) subject() string {
	if w.Path != "" {
		return w.Path
	}
	return "port " + net.JoinHostPort(w.Host, strconv.Itoa(w.Port))
}

// goal is what is waited for, in the words of look.
func (w *waitFor) goal() string {
	switch goal := w.state(); {
	case w.SearchRegex != "":
		return goal + ", with a match for " + w.SearchRegex
	default:
		return goal
	}
}

// look says how things are, "" if as they should be. An error means that it cannot be known.
func (w *waitFor) look(ctx context.Context, host *module.Host) (string, error) {
	if w.Path != "" {
		return w.lookAtPath(ctx, host)
	}
	limited, cancel := context.WithTimeout(ctx, w.ConnectTimeout)
	defer cancel()
	conn, err := host.Dial(limited, "tcp", net.JoinHostPort(w.Host, strconv.Itoa(w.Port)))
	if lost := (*transport.UnreachableError)(nil); errors.As(err, &lost) || ctx.Err() != nil {
		return "", errors.Join(err, ctx.Err())
	}
	if w.state() == "stopped" {
		if err == nil {
			return "started", conn.Close()
		}
		return "", nil
	}
	if err != nil {
		return "stopped: " + err.Error(), nil
	}
	defer conn.Close()
	if w.SearchRegex == "" {
		return "", nil
	}
	return w.listen(limited, conn), nil
}

// listen reads what the other side says unasked until it matches.
func (w *waitFor) listen(ctx context.Context, conn net.Conn) string {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	re := regexp.MustCompile(w.SearchRegex)
	var said []byte
	for buf := make([]byte, 4096); len(said) < 1<<16; {
		n, err := conn.Read(buf)
		said = append(said, buf[:n]...)
		if re.Match(said) {
			return ""
		}
		if err != nil {
			break
		}
	}
	const shown = 80
	return fmt.Sprintf("started, and says %.*q", shown, said)
}

func (w *waitFor) lookAtPath(ctx context.Context, host *module.Host) (string, error) {
	var info transport.FileInfo
	var held []byte
	var err error
	if w.SearchRegex == "" {
		info, err = transport.Stat(ctx, host, w.Path, false)
	} else {
		info, held, err = readHead(ctx, host, w.Path)
	}
	switch exists := info.Exists(); {
	case err != nil:
		return "", err
	case exists && w.state() == "absent":
		return "present", nil
	case !exists && w.state() == "present":
		return "absent", nil
	case exists && !regexp.MustCompile(w.SearchRegex).Match(held):
		return "present, without a match", nil
	}
	return "", nil
}

// Check looks once.
func (w *waitFor) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	now, err := w.look(ctx, host)
	if err != nil {
		return module.Plan{}, err
	}
	plan := module.Plan{Values: module.Values{"elapsed": 0.0}}
	if w.Path != "" && len(host.Effects) > 0 {
		task, sure := "", false
		if now, task, sure = w.foresee(host, now); task != "" && !sure {
			return doubtful(task), nil
		}
		if now == "" {
			return plan, nil
		}
	}
	if now != "" {
		plan.Changes = []module.Change{{What: "wait for " + w.subject(), Before: now, After: w.goal()}}
		plan.Wait = true
	}
	return plan, nil
}

// foresee says how earlier tasks of this check will have made the path, and the task that decides it: surely, or perhaps.
func (w *waitFor) foresee(host *module.Host, now string) (later, task string, sure bool) {
	before := transport.FileInfo{Kind: "file"}
	if now == "absent" || w.state() == "absent" && now == "" {
		before = transport.FileInfo{}
	}
	p := foresee(host, w.Path, before)
	switch {
	case !p.pending:
		return now, "", true
	case p.doubt != "":
		return now, p.doubt, false
	case p.Exists() != (w.state() == "present"):
		return map[bool]string{true: "present", false: "absent"}[p.Exists()], p.by.Task, true
	case w.SearchRegex == "":
		return "", p.by.Task, true
	case p.same && before.Exists():
		return now, p.by.Task, true
	case !p.known || p.Kind != "file":
		return now, p.by.Task, false
	case !regexp.MustCompile(w.SearchRegex).Match(p.content):
		return "present, without a match", p.by.Task, true
	}
	return "", p.by.Task, true
}

// Apply looks again and again until things are as they should be, or the time is over.
func (w *waitFor) Apply(ctx context.Context, host *module.Host, _ module.Plan) (module.Values, error) {
	start := time.Now()
	if err := pause(ctx, w.Delay); err != nil {
		return nil, err
	}
	for {
		now, err := w.look(ctx, host)
		if err != nil {
			return nil, err
		}
		elapsed := time.Since(start)
		if now == "" {
			return module.Values{"elapsed": elapsed.Round(time.Millisecond).Seconds()}, nil
		}
		if elapsed+w.Sleep > w.Timeout {
			text := fmt.Sprintf("waited %s for %s: it is still %s, not %s", w.Timeout, w.subject(), now, w.goal())
			if w.Msg != "" {
				text = w.Msg + "\n" + text
			}
			return nil, errors.New(text)
		}
		host.Progress(fmt.Sprintf("%s is %s", w.subject(), now))
		if err := pause(ctx, w.Sleep); err != nil {
			return nil, err
		}
	}
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Returns documents the result.
func (*waitFor) Returns() []module.Return {
	return []module.Return{{Name: "elapsed", Type: "float", Help: "seconds that were waited"}}
}

// ReadsOnly tells the engine that it changes nothing.
func (*waitFor) ReadsOnly() bool { return true }
