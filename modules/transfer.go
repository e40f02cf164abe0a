package modules

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"runbook/engine/module"
	"runbook/engine/transport"
)

func init() {
	register("transfer", func() module.Module { return &transfer{Mode: module.Mode{Set: true, Bits: 0o600}} })
}

// transfer copies a file from another host of the inventory to this one, through the controller as a stream: no trust between the
// hosts, no memory for the file.
//
// The checksum is taken at both ends and on the way. The file arrives under a temporary name beside dest and is renamed only when
// all three agree, so a transfer that is cut off never leaves a dest.
//
//	tasks:
//	  - name: fetch the dump from the master
//	    transfer:
//	      src_host: voms1.example.org
//	      src: /var/lib/runbook/man06/dump.sql
//	      dest: /var/lib/runbook/man06/dump.sql
type transfer struct {
	// Inventory name of the host that has the file.
	SrcHost string `yaml:"src_host" required:"true"`
	// Absolute path of the file there.
	Src string `yaml:"src" required:"true"`
	// Absolute path of the file on this host; its directory must exist.
	Dest string `yaml:"dest" required:"true"`
	// SHA-256 that the file must have, in hexadecimal. Default: the one that it has at the source.
	SHA256 string `yaml:"sha256" late:"true"`
	// File mode of dest.
	Mode module.Mode `yaml:"mode"`
	// Owner of dest. Default: the task's user for a new file.
	Owner string `yaml:"owner"`
	// Group of dest.
	Group string `yaml:"group"`
}

func (*transfer) Returns() []module.Return {
	return []module.Return{
		{Name: "path", Type: "string", Help: "the file on this host"},
		{Name: "size", Type: "int", Help: "bytes"},
		{Name: "sha256", Type: "string", Help: "checksum, the same at both ends"},
		{Name: "transferred", Type: "bool", Help: "whether the content had to be sent"},
	}
}

var sha256Pattern = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

func (m *transfer) Validate() error {
	var errs []error
	for _, a := range []struct{ name, value string }{{"src", m.Src}, {"dest", m.Dest}} {
		if !path.IsAbs(a.value) || strings.HasSuffix(a.value, "/") || strings.ContainsAny(a.value, "\n\x00") {
			errs = append(errs, &module.ArgError{Path: a.name, Msg: "not an absolute path of a file"})
		}
	}
	if m.SHA256 != "" && !sha256Pattern.MatchString(m.SHA256) {
		errs = append(errs, &module.ArgError{Path: "sha256", Msg: "not a SHA-256 checksum: 64 hexadecimal digits"})
	}
	for _, a := range []struct{ name, value string }{{"owner", m.Owner}, {"group", m.Group}} {
		if strings.ContainsAny(a.value, ":\n\x00 ") {
			errs = append(errs, &module.ArgError{Path: a.name, Msg: "not a name"})
		}
	}
	return errors.Join(errs...)
}

// transferEnd is the file at one end.
type transferEnd struct {
	kind   string // "" (nothing there), file, other, nodir (not even its directory)
	size   int
	sha256 string
	mode   uint32
	owner  string
	group  string
	freeKB int
}

const transferLook = `
d=$(dirname -- "$1")
if [ -f "$1" ]; then
	printf 'file %s %s\n' "$(stat -L -c '%s %a %U %G' -- "$1")" "$(sha256sum <"$1" | cut -d ' ' -f 1)"
elif [ -e "$1" ]; then echo other
elif [ ! -d "$d" ]; then echo nodir; exit 0
else echo absent
fi
df -Pk -- "$d" | { read -r _; read -r _ _ _ free _; printf '%s\n' "$free"; }`

func lookForTransfer(ctx context.Context, host *module.Host, file string) (transferEnd, error) {
	out, err := hostScript(ctx, host, transferLook, file)
	if err != nil {
		return transferEnd{}, fmt.Errorf("cannot look at %s on %s: %w", file, host.Name, err)
	}
	first, second, _ := strings.Cut(string(out.Stdout), "\n")
	end := transferEnd{freeKB: -1}
	_, _ = fmt.Sscan(second, &end.freeKB)
	fields := strings.Fields(first)
	switch {
	case len(fields) == 6 && fields[0] == "file":
		end.kind = "file"
		if _, err := fmt.Sscanf(fields[1]+" "+fields[2], "%d %o", &end.size, &end.mode); err != nil || !sha256Pattern.MatchString(fields[5]) {
			return end, fmt.Errorf("cannot read %s on %s", file, host.Name)
		}
		end.owner, end.group, end.sha256 = fields[3], fields[4], fields[5]
	case len(fields) == 1 && fields[0] == "absent":
	case len(fields) == 1:
		end.kind = fields[0]
	default:
		return end, fmt.Errorf("cannot read %s on %s", file, host.Name)
	}
	return end, nil
}

type transferState struct {
	src  transferEnd
	send bool
	attr bool
}

func (m *transfer) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	peer, err := host.Peer(ctx, m.SrcHost)
	if err != nil {
		return module.Plan{}, fmt.Errorf("cannot reach %s, which has the file: %w", m.SrcHost, err)
	}
	if peer.Conn == host.Conn {
		return module.Plan{}, fmt.Errorf("src_host %s is this host itself", m.SrcHost)
	}
	if doubt := inDoubt(peer, pathKind, m.Src); doubt != nil {
		return *doubt, nil
	}
	if doubt := inDoubt(host, pathKind, m.Dest); doubt != nil {
		return *doubt, nil
	}
	var src, dest transferEnd
	var srcErr, destErr error
	var both sync.WaitGroup
	both.Go(func() { src, srcErr = lookForTransfer(ctx, peer, m.Src) })
	both.Go(func() { dest, destErr = lookForTransfer(ctx, host, m.Dest) })
	both.Wait()
	if err := errors.Join(srcErr, destErr); err != nil {
		return module.Plan{}, err
	}
	from := m.SrcHost + ":" + m.Src
	state := transferState{src: src}
	plan := module.Plan{Values: module.Values{"path": m.Dest, "size": src.size, "sha256": src.sha256, "transferred": false}}
	switch {
	case src.kind == "other":
		return plan, fmt.Errorf("%s is not a regular file", from)
	case dest.kind == "other":
		return plan, fmt.Errorf("%s is there and is not a regular file", m.Dest)
	case isPending(peer, m.Src):
		// Its content is the earlier task's to make, so all that is known is that it will be sent.
		plan.Pending, plan.State = true, state
		plan.Changes = []module.Change{{What: "copy " + from + " to " + m.Dest, After: "what an earlier task makes"}}
		plan.Effects = []module.Effect{m.effect()}
		return plan, nil
	case src.kind != "file":
		// Whoever makes the file may not have run yet; if it should be there by now, Apply says so.
		plan.Unknown, plan.Pending, plan.State = fmt.Sprintf("%s is not there yet", from), true, state
		return plan, nil
	case host.Late["sha256"] != "":
		plan.Unknown, plan.Pending, plan.State = host.Late["sha256"], true, state
		return plan, nil
	case m.SHA256 != "" && !strings.EqualFold(m.SHA256, src.sha256):
		return plan, fmt.Errorf("%s has SHA-256 %s, expected %s: it is not the file that is meant, or was changed", from, src.sha256, m.SHA256)
	}
	if state.send = dest.kind != "file" || dest.size != src.size || dest.sha256 != src.sha256; state.send {
		if dest.freeKB >= 0 && src.size/1024 > dest.freeKB {
			return plan, fmt.Errorf("not enough space on %s: the file has %d KB, %s has %d KB free", host.Name, src.size>>10, path.Dir(m.Dest), dest.freeKB)
		}
		before := "absent"
		if dest.kind == "file" {
			before = fmt.Sprintf("%d bytes, SHA-256 %s", dest.size, dest.sha256)
		}
		plan.Changes = append(plan.Changes, module.Change{What: "copy " + from + " to " + m.Dest, Before: before,
			After: fmt.Sprintf("%d bytes, SHA-256 %s", src.size, src.sha256)})
		plan.Values["transferred"] = true
	} else {
		attr := func(what, before, after string) {
			if after != "" && before != after {
				plan.Changes = append(plan.Changes, module.Change{What: what + " of " + m.Dest, Before: before, After: after})
				state.attr = true
			}
		}
		attr("mode", fmt.Sprintf("%04o", dest.mode), m.Mode.String())
		attr("owner", dest.owner, m.Owner)
		attr("group", dest.group, m.Group)
	}
	plan.State = state
	plan.Effects = []module.Effect{m.effect()}
	return plan, nil
}

func (m *transfer) effect() module.Effect {
	return fileEffect(m.Dest, pathEffect{kind: "file", owned: owned{Mode: m.Mode, Owner: m.Owner, Group: m.Group}})
}

// transferReceive writes standard input to a new file and says what arrived.
const transferReceive = `
umask 077
[ -d "$(dirname -- "$1")" ] || { echo "the directory of the destination does not exist" >&2; exit 1; }
rm -f -- "$1" || exit 1
trap 'rm -f -- "$1"; exit 143' HUP INT TERM
set -C
cat >"$1" || { code=$?; rm -f -- "$1"; exit "$code"; }
sync "$1" 2>/dev/null || sync
sha256sum <"$1" | cut -d ' ' -f 1`

// transferFinish sets owner, group and mode ($2 to $4, empty for none) of $1 and renames it to $5.
const transferFinish = `
set -e
[ -z "$2" ] || chown -- "$2" "$1"
[ -z "$3" ] || chgrp -- "$3" "$1"
[ -z "$4" ] || chmod -- "$4" "$1"
[ "$1" = "$5" ] || mv -f -- "$1" "$5"`

func (m *transfer) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	state, _ := plan.State.(transferState)
	if state.src.kind != "file" {
		return nil, fmt.Errorf("%s has no file %s", m.SrcHost, m.Src)
	}
	values := module.Values{"path": m.Dest, "size": state.src.size, "sha256": state.src.sha256, "transferred": state.send}
	if !state.send {
		_, err := hostScript(ctx, host, transferFinish, m.Dest, m.Owner, m.Group, m.Mode.String(), m.Dest)
		return values, err
	}
	part := path.Join(path.Dir(m.Dest), "."+path.Base(m.Dest)+".part")
	err := m.send(ctx, host, part, state.src)
	if err == nil {
		_, err = hostScript(ctx, host, transferFinish, part, m.Owner, m.Group, m.Mode.String(), m.Dest)
	}
	if err != nil {
		_, _ = hostScript(context.WithoutCancel(ctx), host, `rm -f -- "$1"`, part)
		return nil, fmt.Errorf("cannot copy %s:%s to %s: %w", m.SrcHost, m.Src, m.Dest, err)
	}
	return values, nil
}

// send streams the file into part on host and compares all checksums.
func (m *transfer) send(ctx context.Context, host *module.Host, part string, src transferEnd) error {
	peer, err := host.Peer(ctx, m.SrcHost)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reader, writer := io.Pipe()
	sum := sha256.New()
	var count atomic.Int64
	var sendErr error
	var sending sync.WaitGroup
	sending.Go(func() {
		_, sendErr = peer.Run(ctx, transport.Cmd{Args: []string{"cat", "--", m.Src}, Sent: func() {},
			Stdout: io.MultiWriter(writer, sum, countWriter{&count})})
		// The reader gets an error, not an end, when the source failed.
		_ = writer.CloseWithError(sendErr)
	})
	stop := showProgress(host, func(since time.Time) string { return progressText("sent", int(count.Load()), src.size, since) })

	cmd := hostScriptCmd(transferReceive, part)
	cmd.Stdin, cmd.Bulk = reader, true
	out, receiveErr := host.Run(ctx, cmd)
	_ = reader.CloseWithError(errors.New("the receiving end stopped"))
	if receiveErr != nil {
		cancel()
	}
	sending.Wait()
	stop()
	switch {
	case receiveErr != nil && isExit(receiveErr):
		return fmt.Errorf("%s: %s", host.Name, stderrText(receiveErr))
	case sendErr != nil && isExit(sendErr):
		return fmt.Errorf("%s: %s", m.SrcHost, stderrText(sendErr))
	case sendErr != nil && receiveErr == nil:
		return sendErr
	case receiveErr != nil:
		return receiveErr
	}
	sent, arrived := hex.EncodeToString(sum.Sum(nil)), strings.TrimSpace(string(out.Stdout))
	switch {
	case int(count.Load()) != src.size || sent != src.sha256:
		return fmt.Errorf("%s sent %d bytes with SHA-256 %s, but its file had %d bytes with %s: it changed meanwhile, or the transfer was cut off",
			m.SrcHost, count.Load(), sent, src.size, src.sha256)
	case arrived != sent:
		return fmt.Errorf("SHA-256 %s was sent, %s arrived", sent, arrived)
	}
	return nil
}

type countWriter struct{ n *atomic.Int64 }

func (w countWriter) Write(p []byte) (int, error) {
	w.n.Add(int64(len(p)))
	return len(p), nil
}

// showProgress shows text every second until stop is called.
func showProgress(host *module.Host, text func(since time.Time) string) (stop func()) {
	start, done, ended := time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				host.Progress(text(start))
			}
		}
	}()
	return func() { close(done); <-ended }
}
