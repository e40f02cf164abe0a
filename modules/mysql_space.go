package modules

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"strconv"
	"strings"
	"time"

	"runbook/engine/module"
)

// A server whose disk is full fails some statements, with errors that often name anything but the disk, and lets others wait until there
// is room: what goes to a binary log, a relay log or a table of MyISAM or Aria. Who waits holds locks, and others wait for it.
//
// So whatever a session does is watched. What waits for room too long is given up, but not ended with KILL: MariaDB 10.11 then closes the
// relay log for good, and neither SHOW SLAVE STATUS nor its own shutdown ever returns. Left alone it goes on when there is room.

// mysqlPatience says how often the server is looked at while it is busy with something, and how long it may wait for room: on a disk that is
// full, and on one that no longer is, which the server itself notices once a minute.
var mysqlPatience = struct{ look, full, room time.Duration }{5 * time.Second, 30 * time.Second, 100 * time.Second}

// mysqlSpaceStates are how MariaDB and MySQL call it that a thread waits for room.
var mysqlSpaceStates = map[string]bool{"Waiting for someone to free space": true, "Waiting for disk space": true}

// mysqlSpaceErrors are those that a server gives on a full disk, some of them for other reasons, too.
var mysqlSpaceErrors = map[int]bool{3: true, 20: true, 1005: true, 1021: true, 1026: true, 1030: true, 1114: true, 1180: true, 1201: true, 1598: true, 1872: true, 1878: true}

// noRoomError says that the server waits for room.
type noRoomError struct{ full string }

func (e *noRoomError) Error() string {
	full := e.full
	if full == "" {
		full = "its error log says where"
	}
	return "the server waits for room on a disk: " + full + ". What it was told to do is under way there, and goes on by itself up to a minute after there is room; " +
		"do not use KILL, which can make the whole server hang"
}

// watch returns a context for what the server is told to do, and what its error is to be put through. moved, if set, tells how far that
// has come: as long as it moves, it does not wait.
func (s *mysqlSession) watch(ctx context.Context, moved func() int64) (context.Context, func(error) error) {
	if s.again == nil {
		return ctx, s.explain
	}
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.lookout(ctx, cancel, moved)
	}()
	return ctx, func(err error) error {
		cancel(nil)
		<-ended
		if noRoom := (*noRoomError)(nil); err != nil && errors.As(context.Cause(ctx), &noRoom) {
			return noRoom
		}
		if err = s.explain(err); mysqlSpaceErrors[mysqlErrno(err)] {
			if full := s.fullDisks(outer, mysqlExtentKB); full != "" {
				return fmt.Errorf("%s: %w", full, err)
			}
		}
		return err
	}
}

// lookout looks at the server, by a login of its own, until ctx ends, and ends it if there is no room for too long.
func (s *mysqlSession) lookout(ctx context.Context, cancel context.CancelCauseFunc, moved func() int64) {
	var looking *mysqlSession
	defer func() {
		if looking != nil {
			looking.close()
		}
	}()
	tick := time.NewTicker(mysqlPatience.look)
	defer tick.Stop()
	var since time.Time
	var come int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if looking == nil {
			var err error
			if looking, err = s.again(ctx); err != nil {
				looking = nil
				continue
			}
		}
		waits, long, err := looking.waitsForRoom(ctx)
		if err != nil {
			looking.close()
			looking = nil
			continue
		}
		if moved != nil {
			if n := moved(); n != come {
				come, waits = n, false
			}
		}
		if !waits {
			since = time.Time{}
			continue
		}
		if since.IsZero() {
			since = time.Now()
		}
		full, limit := looking.fullDisks(ctx, mysqlWriteKB), mysqlPatience.full
		if full == "" {
			limit, long = mysqlPatience.room, 0
		}
		s.host.Progress("the server waits for room on a disk: " + full)
		if max(time.Since(since), long) >= limit {
			cancel(&noRoomError{full})
			return
		}
	}
}

// waitsForRoom says whether any thread of the server does, and for how long it has been at its statement.
func (s *mysqlSession) waitsForRoom(ctx context.Context) (waits bool, long time.Duration, err error) {
	rows, err := s.rows(ctx, "SHOW PROCESSLIST")
	if err != nil {
		return false, 0, err
	}
	for _, row := range rows.Rows {
		if mysqlSpaceStates[mysqlText(row["State"])] {
			seconds, _ := mysqlInt(row["Time"])
			waits, long = true, max(long, time.Duration(seconds)*time.Second)
		}
	}
	return waits, long, nil
}

// How much free space counts as none: for a write that waits, and for InnoDB, which takes several megabytes at a time.
const mysqlWriteKB, mysqlExtentKB = 1 << 10, 16 << 10

const mysqlDisks = `
for d; do
	df -Pk -- "$d" | { read -r _; read -r _ _ _ free _ mount; printf 'K %s %s\t%s\n' "$free" "$d" "$mount"; }
	df -Pi -- "$d" | { read -r _; read -r _ all _ free _ mount; [ "$all" = 0 ] || [ "$all" = - ] || printf 'I %s %s\t%s\n' "$free" "$d" "$mount"; }
done 2>/dev/null
:`

// fullDisks says which of the folders that the server writes to have less free space than that; "" if none has, or that cannot be told.
func (s *mysqlSession) fullDisks(ctx context.Context, less int) string {
	if !s.target.local() {
		return ""
	}
	rows, err := s.rows(ctx, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('datadir', 'tmpdir', 'innodb_data_home_dir', 'innodb_log_group_home_dir', 'aria_log_dir_path', "+
		"'log_bin_basename', 'relay_log_basename', 'relay_log')")
	if err != nil {
		return ""
	}
	values := map[string]string{}
	for _, row := range rows.Ordered {
		values[mysqlText(row[0])] = mysqlText(row[1])
	}
	folders := []string{path.Clean(values["datadir"])}
	for name, value := range values {
		switch name {
		case "log_bin_basename", "relay_log_basename", "relay_log":
			value = path.Dir(value)
		}
		for folder := range strings.SplitSeq(value, ":") { // tmpdir may be several
			if path.IsAbs(folder) {
				folders = append(folders, path.Clean(folder))
			}
		}
	}
	out, err := hostScript(ctx, s.host, mysqlDisks, folders...)
	if err != nil {
		return ""
	}
	return parseDisks(string(out.Stdout), less)
}

// parseDisks reads what mysqlDisks wrote, each disk once.
func parseDisks(text string, less int) string {
	var full []string
	seen := map[string]bool{}
	for line := range strings.SplitSeq(text, "\n") {
		kind, rest, _ := strings.Cut(line, " ")
		number, rest, _ := strings.Cut(rest, " ")
		folder, mount, ok := strings.Cut(rest, "\t")
		free, err := strconv.Atoi(number)
		if !ok || err != nil || seen[kind+mount] {
			continue
		}
		seen[kind+mount] = true
		switch {
		case kind == "K" && free < less:
			full = append(full, fmt.Sprintf("the disk of %s is full, %d KB free", folder, free))
		case kind == "I" && free == 0:
			full = append(full, fmt.Sprintf("the disk of %s has no inodes left", folder))
		}
	}
	return strings.Join(full, "; ")
}

// local says whether the server is on the host itself.
func (t mysqlTarget) local() bool {
	if t.network == "unix" {
		return true
	}
	host, _, _ := net.SplitHostPort(t.addr)
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// watchable makes what the session does watched.
func (s *mysqlSession) watchable(l *mysqlLogin, host *module.Host) {
	s.host = host
	s.again = func(ctx context.Context) (*mysqlSession, error) {
		other, err := l.openTarget(ctx, host, s.target)
		if err == nil {
			other.again = nil
		}
		return other, err
	}
}
