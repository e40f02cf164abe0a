package transport

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A lock keeps two runs from working on a host at the same time. It is a kernel lock (flock) on a file of the host, held
// by a small sh in a session of its own on the run's connection: while the connection lives, so does the lock, and
// when the controller dies the kernel lets go of it. Beside it lies a file that tells everybody who holds it.
//
// The holder does not let go while a command of the run still works: it is told of the connection's shells, and
// when its connection ends it waits for them. A shell ends with its connection unless a command is under way in it, so
// a dead controller's lock is free within a fraction of a second, or as soon as its last command is over.
//
// Root's lock is in /run/runbook/lock, where no other user can have been before. Without root a user has a lock of
// his own in his home directory, by the name of the host, for homes are shared. Such a lock keeps out the same user only.

// Holder is who holds a host's lock. Times are the host's.
type Holder struct {
	Run        string `json:"run"`
	User       string `json:"user"`       // the operator's login name
	Controller string `json:"controller"` // host name of the machine that the run is controlled from
	PID        int    `json:"pid"`        // the process there
	Mark       string `json:"mark"`       // tells that process from all others that had or will have its number: see Self

	Since   time.Time `json:"since"`
	Renewed time.Time `json:"renewed"` // the controller's last sign of life
	Left    time.Time `json:"left"`    // when the connection ended, while commands were under way; zero while there is one
	Now     time.Time `json:"now"`     // when the host was asked

	As       string   `json:"as"`                 // whose lock it is on the host: "root", or "" for the login user
	Job      string   `json:"job,omitempty"`      // the long step that holds the host although its run has no connection
	Commands []string `json:"commands,omitempty"` // when Left: what is under way, each "PID ARGUMENTS"

	id      string // of this lock alone
	process string // the holder on the host: its number, start and boot
	conn    string // the SSH server's process of its connection, in the same form; "" if unknown
}

// Self is the Holder that this process is.
func Self(run string) Holder {
	me := Holder{Run: run, PID: os.Getpid(), Mark: selfMark()}
	me.User, me.Controller = Operator()
	return me
}

// Operator is who runs this program, and on which machine: under sudo the person, not root, and never nobody.
func Operator() (name, controller string) {
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	name = cmp.Or(name, os.Getenv("USER"), fmt.Sprintf("user %d", os.Getuid()))
	if by := os.Getenv("SUDO_USER"); by != "" && os.Geteuid() == 0 {
		name = by
	}
	controller, _ = os.Hostname()
	return name, controller
}

// selfMark is: machine, boot, space of process numbers, start of this process.
var selfMark = sync.OnceValue(func() string {
	machine, boot := "", ""
	if id, err := os.ReadFile("/etc/machine-id"); err == nil && len(id) > 30 {
		machine = fmt.Sprintf("%x", sha256.Sum256([]byte("runbook lock "+strings.TrimSpace(string(id)))))[:16]
	}
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		boot = strings.TrimSpace(string(id))
	}
	space, _ := os.Readlink("/proc/self/ns/pid")
	return strings.Join([]string{machine, boot, strings.Trim(strings.TrimPrefix(space, "pid:"), "[]"), begun(os.Getpid())}, ":")
})

// begun is when a process was started, in the kernel's ticks; "" if that cannot be told.
func begun(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

// is reports whether a holder is this very process.
func (h *Holder) is(me Holder) bool {
	return h.PID == me.PID && h.Mark == me.Mark && h.Controller == me.Controller
}

// fate tells what this machine knows of a holder's controller: that it is gone, or that it lives, or neither.
func (h *Holder) fate() (gone, lives bool) {
	theirs, ours := strings.Split(h.Mark, ":"), strings.Split(selfMark(), ":")
	name, err := os.Hostname()
	if err != nil || name != h.Controller || len(theirs) != 4 || theirs[1] == "" || ours[1] == "" || h.PID <= 1 {
		return false, false
	}
	if theirs[1] != ours[1] {
		// That machine was booted since, if it is this one and not its clone: then nothing has been heard of it.
		return theirs[0] != "" && theirs[0] == ours[0] && h.Now.Sub(h.Renewed) > 6*renewEvery, false
	}
	if theirs[2] == "" || theirs[2] != ours[2] {
		return false, false
	}
	if unix.Kill(h.PID, 0) == unix.ESRCH {
		return true, false
	}
	switch start := begun(h.PID); start {
	case "":
		return false, true // it exists and is not ours to look at
	case theirs[3]:
		return false, true
	default:
		return theirs[3] != "", false
	}
}

// String says who and since when, for a person.
func (h *Holder) String() string {
	if h.Run == "" {
		return "somebody who has not said who"
	}
	var b strings.Builder
	if h.Job != "" {
		fmt.Fprintf(&b, "the long step %s of ", h.Job)
	}
	fmt.Fprintf(&b, "run %s of %s on %s (process %d)", h.Run, h.User, h.Controller, h.PID)
	if !h.Since.IsZero() {
		fmt.Fprintf(&b, ", since %s", h.Since.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	if !h.Left.IsZero() {
		fmt.Fprintf(&b, "; its connection ended %s ago, but a command of it is still under way", h.ago(h.Left))
		if len(h.Commands) > 0 {
			fmt.Fprintf(&b, " (process %s)", strings.Join(h.Commands, "; process "))
		}
	} else if !h.Renewed.IsZero() && h.Job == "" {
		fmt.Fprintf(&b, ", last sign of life %s ago", h.ago(h.Renewed))
	}
	switch gone, lives := h.fate(); {
	case gone:
		b.WriteString("; that process, of this machine, is gone")
	case lives:
		b.WriteString("; that process, of this machine, is alive")
	}
	return b.String()
}

func (h *Holder) ago(t time.Time) time.Duration {
	return max(h.Now.Sub(t), 0).Round(time.Second)
}

// HeldError says that a host is locked by somebody else.
type HeldError struct {
	Host   string
	Holder Holder
}

func (e *HeldError) Error() string { return fmt.Sprintf("%s is locked by %s", e.Host, &e.Holder) }

// LockLostError says that a run's lock was ended by somebody while it worked. The connection is not used any more.
type LockLostError struct{}

func (e *LockLostError) Error() string {
	return "this run's lock on the host was ended, by `runbook unlock` or by another process of this run"
}

var errNoLocks = errors.New("cannot lock a host over a connection of this kind")

var (
	// renewEvery is how often a holder is told that its controller is alive.
	renewEvery = 10 * time.Second
	// takeOverWait bounds how long a run that goes on waits for the commands of its dead predecessor, and
	// cutWait how long another run does after it has ended the connection of one that is gone.
	takeOverWait, cutWait = 2 * time.Minute, 10 * time.Second
)

// lockBasics is what all scripts about locks begin with. The variable given is a directory, or empty.
//
//	begun PID     sets b to the process's start and boot, c to its name, up to its parent; fails if it is gone
//	same ID       whether the process ID (PID:START:BOOT) is alive
//	place ROOT    sets dir to where the lock is, of root or of this user
//	look FILE     sets holder, conn, left and works to what FILE says; fails if there is no such file
//	show FILE     prints FILE, and the commands that are under way of those it tells of, as lines that begin with "= "
//	nap           a tenth of a second, where sleep knows fractions
const lockBasics = `
set -f
umask 022
fail() { printf 'error %s\n' "$1"; exit 0; }
uid=$(id -u) || fail "it cannot be told which user this is"
{ read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
begun() {
	b= c= up=
	{ read -r l <"/proc/$1/stat"; } 2>/dev/null || return 1
	c=${l#*(} c=${c%)*}
	set -- ${l##*) }
	[ "$1" != Z ] || return 1
	up=$2 b=${20}:$boot
}
same() { [ "$1" ] && begun "${1%%:*}" && [ "$b" = "${1#*:}" ]; }
place() {
	if [ "$given" ]; then
		dir=$given/$uid
	elif [ "$1" ]; then
		dir=/run
		[ -d /run ] || dir=/var/run
		dir=$dir/runbook/lock
	else
		home= name=$(id -un) node=$(uname -n)
		case $name in *[!A-Za-z0-9._-]*|'') ;; *) eval "home=~$name" ;; esac
		case $node in */*|''|.*) node=host ;; esac
		dir=/var/tmp/.runbook-$uid
		[ -d "$home" ] && [ -O "$home" ] && [ -w "$home" ] && dir=$home/.runbook
		dir=$dir/lock-$node
	fi
}
look() {
	holder= conn= left= works=
	[ -f "$1" ] || return 1
	while read -r k v; do
		case $k in
		holder) holder=$v ;;
		conn) conn=$v ;;
		left) left=$v ;;
		work) works="$works $v" ;;
		find) # a job's directory says which process it is
			[ -f "$v" ] || continue
			{ read -r k v s _ <"$v"; } 2>/dev/null
			holder=$k:$v:$s ;;
		esac
	done <"$1"
}
show() {
	look "$1" || return
	while read -r l; do
		printf '= %s\n' "$l"
	done <"$1"
	printf '= holder %s\n' "$holder"
	for w in $works; do
		same "$w" || continue
		all=
		set +f
		for s in /proc/[0-9]*; do
			begun "${s#/proc/}" && all="$all ${s#/proc/}:$up "
		done
		set -f
		p=${w%%:*}
		# A shell's command is at the end of the chain of its children.
		while case $all in *":$p "*) true ;; *) false ;; esac; do
			q=${all%%":$p "*}
			q=${q##* }
			[ "$q" != "$p" ] || break
			p=$q
		done
		{ printf '= command %s ' "$p"; tr '\0\n' '  ' <"/proc/$p/cmdline" | head -c 200; echo; } 2>/dev/null
	done
}
nap() { sleep 0.1 9>&- 2>/dev/null || sleep 1 9>&-; }
`

// lockMake makes the place of a lock, and refuses one that others could have made or can write in.
const lockMake = `
own() {
	[ -d "$1" ] || mkdir -m 755 "$1" 2>/dev/null
	if [ -L "$1" ] || [ ! -d "$1" ]; then
		[ -L "$1" ] || [ -e "$1" ] || fail "the directory $1 cannot be made"
		fail "$1 is not a directory"
	fi
	[ -O "$1" ] || fail "$1 belongs to another user"
	case $(ls -ldn "$1") in d????w*|d???????w*) fail "other users may write in $1" ;; esac
}
make() {
	place "$1"
	[ "$given" ] || own "${dir%/*}"
	own "$dir"
	command -v flock >/dev/null || fail "the host has no flock, which is part of util-linux"
	( umask 077; : >>"$dir/lock" ) 2>/dev/null || fail "$dir/lock cannot be written"
	chmod 600 "$dir/lock" || fail "$dir/lock has not the right mode" # who may open it could lock it
	exec 9>>"$dir/lock"
}
`

// lockScript takes the lock and holds it until its input ends. Its variables: who, the lines that say who we are; run;
// evict, the holder whose place may be taken; tries, for how many tenths of a second it is waited for; ssh, set if the
// connection has a process of an SSH server. It prints lines "= WORD VALUE" of an earlier holder, and then "locked TIME",
// "held TIME" or "error TEXT". What it reads are lines "renew", "work PID", "rest PID" and "release".
const lockScript = `
trap '' HUP INT PIPE
held() {
	show "$1"
	[ ! "$2" ] || printf '= left %s\n' "$2"
	printf 'held %s\n' "$(date +%s)"
	exit 0
}
late() {
	n=$((n + 1))
	[ $n -lt $most ] || return 0
	nap
	return 1
}
if [ "$uid" = 0 ]; then make root; else make ''; fi
f=$dir/who n=0 most=20
until flock -n 9; do
	s=$?
	[ $s = 1 ] || fail "flock cannot lock $dir/lock (status $s)"
	if look "$f" && same "$holder"; then
		if [ "$evict" ] && [ "$holder" = "$evict" ]; then
			most=$tries
			if [ ! "$left" ]; then
				if [ $n -lt 20 ]; then kill -TERM "${holder%%:*}"; else kill -KILL "${holder%%:*}"; fi
			fi 2>/dev/null
		elif [ ! "$left" ]; then
			held "$f"
		fi
	fi
	# Else it is about to say who it is, or waits for its last command.
	if late; then held "$f"; fi
done
if look "$f"; then # it died without a word: of what it has begun, nothing may go on
	show "$f"
	if same "$conn"; then
		for m in 1 2 3 4 5 6 7 8; do
			nap # so that its controller is told of the holder's end before that of the connection
		done
		cut=$((n + 20))
		while same "$conn"; do
			if [ $n -lt $cut ]; then kill -TERM "${conn%%:*}"; else kill -KILL "${conn%%:*}"; fi 2>/dev/null
			if late; then held "$f"; fi
		done
	fi
	for w in $works; do
		while same "$w"; do
			if late; then held "$f" "${left:-$(date +%s)}"; fi
		done
	done
fi
set +f
set -- "$dir"/jobs/*
set -f
for j; do
	look "$j" || continue
	if ! same "$holder"; then
		rm -f "$j"
		continue
	fi
	while read -r k v; do
		[ "$k" != run ] || [ "$v" != "$run" ] || continue 2
	done <"$j"
	held "$j"
done
{ read -r me _ </proc/self/stat; } 2>/dev/null
begun "$me" || fail "/proc cannot be read"
mine=$me:$b conn= p=$up
while [ "$ssh" ] && [ "${p:-0}" -gt 1 ] && begun "$p"; do
	case $c in
	sshd*|dropbear*) conn=$p:$b; break ;;
	sh|ash|dash|bash|busybox|su|sudo|doas) p=$up ;;
	*) break ;;
	esac
done
since=$(date +%s) left= works=
note() {
	printf '%s\nsince %s\nrenewed %s\nleft %s\nholder %s\nconn %s\n' "$who" "$since" "$(date +%s)" "$left" "$mine" "$conn" >"$dir/who.new" || return
	for w in $works; do
		printf 'work %s\n' "$w" || return
	done >>"$dir/who.new"
	mv -f "$dir/who.new" "$dir/who"
}
{ note; } 2>/dev/null || fail "$dir/who cannot be written"
printf 'locked %s\n' "$since"
working() {
	for w in $works; do
		same "$w" && return 0
	done
	return 1
}
exec 2>/dev/null
while read -r k v; do
	case $k in
	work) begun "$v" && works="$works $v:$b" ;;
	rest)
		rest=
		for w in $works; do
			case $w in "$v":*) ;; *) rest="$rest $w" ;; esac
		done
		works=$rest ;;
	release)
		rm -f "$dir/who"
		exit 0 ;;
	esac
	[ "$k" = renew ] && note
done
if working; then
	left=$(date +%s)
	note
	while working; do
		nap
	done
fi
rm -f "$dir/who"
exit 0
`

// lockedScript prints who holds root's lock and this user's, each as lines that end with "held TIME AS", and
// "done" at last. It needs no privilege.
const lockedScript = `
for as in root ''; do
	[ "$uid" = 0 ] && [ ! "$as" ] && continue
	[ "$given" ] && [ "$as" ] && [ "$uid" != 0 ] && continue
	place "$as"
	set +f
	set -- "$dir/who" "$dir"/jobs/*
	set -f
	for f; do
		look "$f" && same "$holder" || continue
		show "$f"
		printf 'held %s %s\n' "$(date +%s)" "$as"
	done
done
printf 'done\n'
`

// unlockScript ends the holder expected, and its connection, so that nothing more comes from there; a job is but struck
// off. It prints what goes on nevertheless, and "free", "free logged", "other", or "error TEXT". What it says in the host's log, where the host
// has one, is text.
const unlockScript = `
trap '' HUP INT PIPE
if [ "$uid" = 0 ]; then make root; else make ''; fi
f=$dir/who
[ ! "$job" ] || f=$dir/jobs/$job
if ! look "$f" || [ "$holder" != "$expected" ]; then
	printf 'other\n'
	exit 0
fi
logged=
# Without anybody who listens, some loggers say nothing and fail not.
if [ -S /dev/log ] && command -v logger >/dev/null && logger -t runbook -p user.notice -- "$text"; then logged=logged; fi 2>/dev/null
if [ "$job" ]; then
	rm -f "$f" || fail "$f cannot be removed"
	printf 'free %s\n' "$logged"
	exit 0
fi
n=0
while same "$holder" || same "$conn"; do
	n=$((n + 1)) signal=TERM
	[ $n -le 30 ] || signal=KILL
	[ $n -le 50 ] || fail "the process ${holder%%:*}, which holds the lock, cannot be ended"
	if same "$holder"; then
		kill -$signal "${holder%%:*}"
	elif [ $n -gt 10 ]; then # its controller has been told of the holder's end by now
		kill -$signal "${conn%%:*}"
	fi 2>/dev/null
	nap
done
if flock -n 9; then
	show "$f"
	rm -f "$f"
fi
printf 'free %s\n' "$logged"
`

// holdScript says in a file that the job id of account (this user, if empty) holds the host. Whether it does is looked up in
// the job's own directory, so that this can be said before the job is started.
const holdScript = `
if [ "$uid" = 0 ]; then make root; else make ''; fi
own "$dir/jobs"
find() { printf 'find %s/%s/pid\n' "$1" "$id"; }
{
	printf '%s\njob %s\nsince %s\n' "$who" "$id" "$(date +%s)"
	number=$uid
	[ ! "$account" ] || number=$(id -u "$account")
	if [ "$number" = 0 ]; then
		find /var/lib/runbook/jobs
	else
		name=${account:-$(id -un)} home=$HOME
		case $name in *[!A-Za-z0-9._-]*) ;; *) eval "home=~$name" ;; esac
		find "$home/.local/state/runbook/jobs"
		find "/var/tmp/.runbook-jobs-$number"
	fi
} >"$dir/jobs/.$id" && mv -f "$dir/jobs/.$id" "$dir/jobs/$id" || fail "$dir/jobs/$id cannot be written"
printf 'done\n'
`

// lines is what a holder says of itself, a word and a value a line.
func (h *Holder) lines() string {
	return fmt.Sprintf("run %s\nuser %s\ncontroller %s\npid %d\nmark %s", word(h.Run), word(h.User), word(h.Controller), h.PID, word(h.Mark))
}

// word is text of one line, without what a terminal could obey.
func word(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0xfffd {
			return '?'
		}
		return r
	}, s)
	return strings.TrimSpace(s[:min(len(s), 256)])
}

// said reads what a host says of a holder.
func (h *Holder) said(line string) {
	key, value, _ := strings.Cut(word(line), " ")
	when := func() time.Time {
		if n, err := strconv.ParseInt(value, 10, 64); err == nil && n > 0 {
			return time.Unix(n, 0)
		}
		return time.Time{}
	}
	switch key {
	case "run": // the first line about another one
		*h = Holder{Run: value}
	case "user":
		h.User = value
	case "controller":
		h.Controller = value
	case "pid":
		h.PID, _ = strconv.Atoi(value)
	case "mark":
		h.Mark = value
	case "job":
		h.Job = value
	case "since":
		h.Since = when()
	case "renewed":
		h.Renewed = when()
	case "left":
		h.Left = when()
	case "id":
		h.id = value
	case "holder":
		h.process = value
	case "conn":
		h.conn = value
	case "command":
		if len(h.Commands) < 10 {
			h.Commands = append(h.Commands, value)
		}
	}
}

// readHolder reads lines of a lock script up to one that is not about a holder, and returns that one in two words.
func readHolder(next func() (string, error)) (h Holder, verdict, value string, err error) {
	for range 1000 {
		line, err := next()
		if err != nil {
			return h, "", "", err
		}
		if about, ok := strings.CutPrefix(line, "= "); ok {
			h.said(about)
			continue
		}
		verdict, value, _ = strings.Cut(word(line), " ")
		now, as, _ := strings.Cut(value, " ")
		if n, err := strconv.ParseInt(now, 10, 64); err == nil {
			h.Now, h.As = time.Unix(n, 0), as
		}
		return h, verdict, value, nil
	}
	return h, "", "", errFrame
}

func (h *host) lockError(reason string) error {
	return fmt.Errorf("cannot lock %s: %s", h.name, reason)
}

// settings are assignments of sh.
func settings(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "%s=%s\n", pairs[i], Quote(pairs[i+1]))
	}
	return b.String()
}

// Lock locks the host of c, which Connect returned, for me until release is called or the connection ends, and what is then under
// way is over. user is as in Cmd.User: root's lock keeps out all who act as root, another user's those who act as that one. The
// error is *HeldError when somebody else holds it, who is not known to be gone. takenOver, if not nil, is a holder whose
// place this one has taken: it was of the same run, or its controller is known to be gone, or it died without a word.
// The same run may lock a machine twice, under two names; the first lock counts.
//
// When somebody ends the lock, the connection is lost, with *LockLostError as the reason.
func Lock(ctx context.Context, c Conn, user string, me Holder) (release func(context.Context) error, takenOver *Holder, err error) {
	h, ok := c.(*host)
	if !ok {
		return nil, nil, errNoLocks
	}
	if user == h.login {
		user = ""
	}
	nothing := func(context.Context) error { return nil }
	l, old, err := h.takeLock(ctx, user, me, "", 0)
	var held *HeldError
	for errors.As(err, &held) && held.Holder.Job == "" {
		mine, again := ownHolder(ctx, &held.Holder)
		if mine && held.Holder.Run == me.Run && held.Holder.is(me) {
			return nothing, nil, nil // the same machine by another name
		}
		if !again {
			break
		}
		held = nil
		l, old, err = h.takeLock(ctx, user, me, "", 0)
	}
	if held != nil && held.Holder.Job == "" {
		old = &held.Holder
		gone, lives := old.fate()
		left, same := !old.Left.IsZero(), old.Run == me.Run
		switch {
		case same && (gone || left || !lives || old.is(me)):
			l, _, err = h.takeLock(ctx, user, me, old.process, takeOverWait)
		case !same && gone && !left: // else it waits for its command, and so would we
			l, _, err = h.takeLock(ctx, user, me, old.process, cutWait)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if old != nil {
		old.As = user
	}
	return l.release, old, nil
}

// heldLock is a lock while it is held.
type heldLock struct {
	host   *host
	stream *stream
	own    *ownLock
	ended  chan struct{} // closed when the holder has ended

	released atomic.Bool // somebody asked for the end
	writing  sync.Mutex
}

// ownLocks are the locks that this process holds, is about to hold or held, by their ids.
var ownLocks sync.Map

type ownLock struct {
	decided chan struct{} // closed when it is held, or will not be
	held    atomic.Bool
}

// ownHolder reports whether a holder is this process. again says that it was or may have been, and things are others by now.
func ownHolder(ctx context.Context, h *Holder) (mine, again bool) {
	var open *ownLock
	ownLocks.Range(func(id, lock any) bool {
		if l := lock.(*ownLock); id == h.id || h.Run == "" { // who has not said who may be this process
			select {
			case <-l.decided:
			default:
				open = l
			}
		}
		return open == nil
	})
	if open != nil {
		select {
		case <-open.decided:
		case <-ctx.Done():
			return false, false
		}
	}
	known, own := ownLocks.Load(h.id)
	mine = own && known.(*ownLock).held.Load()
	return mine, !mine && (open != nil || own && h.Left.IsZero())
}

// takeLock tries once, and takes the place of the holder evict, whose commands are waited for. The Holder that it returns has died.
func (h *host) takeLock(ctx context.Context, user string, me Holder, evict string, wait time.Duration) (*heldLock, *Holder, error) {
	ssh := "1"
	if _, local := h.link.(*localLink); local {
		ssh = ""
	}
	id := nonce()
	head := settings("given", h.cfg.LockDir, "who", me.lines()+"\nid "+id, "run", word(me.Run), "evict", evict,
		"tries", fmt.Sprint(int(wait/(100*time.Millisecond))), "ssh", ssh)
	own := &ownLock{decided: make(chan struct{})}
	ownLocks.Store(id, own)
	defer close(own.decided)
	s, err := h.startStream(ctx, user, Cmd{Script: head + lockBasics + lockMake + lockScript}, true, true)
	if err != nil {
		return nil, nil, err
	}
	watchdog := context.AfterFunc(ctx, s.close)
	old, verdict, value, err := readHolder(func() (string, error) { return readLine(s.in) })
	if !watchdog() {
		err = cmp.Or(ctx.Err(), err)
	}
	if err == nil && verdict == "locked" {
		l := &heldLock{host: h, stream: s, own: own, ended: make(chan struct{})}
		own.held.Store(true)
		h.watchWork(l)
		go l.watch()
		go l.renew()
		if old.process == "" {
			return l, nil, nil
		}
		return l, &old, nil
	}
	defer s.close()
	_ = s.stdin.Close()
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case err != nil && h.link.lost() != nil:
		return nil, nil, h.unreachable(false, h.link.lost())
	case err != nil:
		if said, _ := s.errors(); lastWords(said) != "" {
			err = errors.New(lastWords(said))
		}
		return nil, nil, h.lockError(err.Error())
	case verdict == "held":
		old.As = user
		return nil, nil, &HeldError{Host: h.name, Holder: old}
	case verdict == "error":
		return nil, nil, h.lockError(value)
	}
	return nil, nil, h.lockError(errFrame.Error())
}

// tell sends the holder lines: before whatever is sent over the connection after. One that is gone is noticed by watch.
func (l *heldLock) tell(lines string) {
	l.writing.Lock()
	defer l.writing.Unlock()
	_, _ = io.WriteString(l.stream.stdin, lines+"\n")
}

// renew sends the holder signs of life.
func (l *heldLock) renew() {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.tell("renew")
		case <-l.ended:
			return
		}
	}
}

// watch waits for the holder's end. If nobody asked for it, the lock is lost, and with it the right to use the connection.
func (l *heldLock) watch() {
	defer close(l.ended)
	_, _ = io.Copy(io.Discard, l.stream.in)
	l.own.held.Store(false)
	l.host.watchWork(nil)
	l.stream.close()
	if l.released.Load() || l.host.ctx.Err() != nil || l.host.link.lost() != nil {
		return
	}
	if l.host.link.alive() == nil { // else it was the end of the link
		l.host.link.fail(&LockLostError{})
		_ = l.host.link.close()
	}
}

// release lets go of the lock and waits until the host has.
func (l *heldLock) release(ctx context.Context) error {
	l.released.Store(true)
	go l.tell("release") // a link that stalls must not keep us longer than ctx allows
	select {
	case <-l.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watchWork makes l the lock that is told of the connection's shells and commands; nil is none.
func (h *host) watchWork(l *heldLock) {
	h.work.Lock()
	defer h.work.Unlock()
	h.work.lock = l
	for pid := range h.work.pids {
		if l != nil {
			l.tell("work " + pid)
		}
	}
	if l != nil {
		l.tell("renew") // writes down what it was told
	}
}

// works says that the process pid of the host does this connection's work until done is called.
func (h *host) works(pid string) (done func()) {
	if pid == "" {
		return func() {}
	}
	h.work.Lock()
	defer h.work.Unlock()
	h.work.pids[pid] = true
	if h.work.lock != nil {
		h.work.lock.tell("work " + pid + "\nrenew")
	}
	return func() {
		h.work.Lock()
		defer h.work.Unlock()
		delete(h.work.pids, pid)
		if h.work.lock != nil && h.ctx.Err() == nil && h.link.lost() == nil { // else nobody knows whether it is over
			h.work.lock.tell("rest " + pid)
		}
	}
}

// work is what processes of a host do this connection's work, and the lock that has to know.
type work struct {
	sync.Mutex
	pids map[string]bool
	lock *heldLock
}

// Locked tells who holds root's lock and the login user's own on the host of c, with the jobs (see HoldJob) that do. It needs no
// privilege.
func Locked(ctx context.Context, c Conn) ([]Holder, error) {
	h, ok := c.(*host)
	if !ok {
		return nil, errNoLocks
	}
	out, err := h.Run(ctx, Cmd{Script: settings("given", h.cfg.LockDir) + lockBasics + lockedScript, Limit: 1 << 20})
	if err != nil {
		return nil, err
	}
	var holders []Holder
	next := nextLine(out.Stdout)
	for {
		holder, verdict, value, err := readHolder(next)
		switch {
		case err != nil:
			return nil, fmt.Errorf("cannot tell who has locked %s: %w", h.name, err)
		case verdict == "error":
			return nil, fmt.Errorf("cannot tell who has locked %s: %s", h.name, value)
		case verdict == "done":
			return holders, nil
		case verdict != "held" || len(holders) == 1000:
			return nil, fmt.Errorf("cannot tell who has locked %s: %w", h.name, errFrame)
		}
		holders = append(holders, holder)
	}
}

func nextLine(text []byte) func() (string, error) {
	rest := string(text)
	return func() (string, error) {
		line, more, ok := strings.Cut(rest, "\n")
		rest = more
		if !ok {
			return "", errFrame
		}
		return line, nil
	}
}

// Unlock ends a lock that Locked told of, and the connection of its holder. logged tells whether the host's log says so now: not every host has
// one. Commands of the holder that are under way nevertheless are not ended: they are returned. A job's hold is ended, and not the job.
func Unlock(ctx context.Context, c Conn, holder, by Holder, reason string) (underWay []string, logged bool, err error) {
	h, ok := c.(*host)
	if !ok {
		return nil, false, errNoLocks
	}
	fail := func(reason any) ([]string, bool, error) {
		return nil, false, fmt.Errorf("cannot unlock %s: %v", h.name, reason)
	}
	if holder.process == "" || strings.ContainsAny(holder.Job, "/") || strings.HasPrefix(holder.Job, ".") {
		return fail("it is not known which process holds the lock")
	}
	text := fmt.Sprintf("%s ended the lock of %s: %s", word(by.User+" on "+by.Controller), &holder, word(reason))
	out, err := h.Run(ctx, Cmd{User: holder.As, Limit: 1 << 20, Script: settings("given", h.cfg.LockDir, "job", holder.Job,
		"expected", holder.process, "text", text) + lockBasics + lockMake + unlockScript})
	if err != nil {
		return fail(err)
	}
	left, verdict, value, err := readHolder(nextLine(out.Stdout))
	switch {
	case err != nil:
		return fail(err)
	case verdict == "error":
		return fail(value)
	case verdict == "other":
		return fail("somebody else holds the lock by now, or nobody does")
	}
	return left.Commands, value == "logged", nil
}

// HoldJob keeps the host of c locked for runs other than me.Run while a Job lives, whether or not its run has a connection. It
// is called before the job is started, by a run that has locked the host; user is the one it was locked as, and job.Cmd.User as in RunJob.
func HoldJob(ctx context.Context, c Conn, user string, me Holder, job Job) error {
	h, ok := c.(*host)
	if !ok {
		return errNoLocks
	}
	if err := checkJobID(job.ID); err != nil {
		return err
	}
	account := job.Cmd.User
	if account == "" && user != "" && user != h.login {
		account = h.login
	}
	out, err := h.Run(ctx, Cmd{User: user, Script: settings("given", h.cfg.LockDir, "who", me.lines(), "id", job.ID, "account", account) +
		lockBasics + lockMake + holdScript})
	if err != nil {
		return err
	}
	if _, verdict, value, err := readHolder(nextLine(out.Stdout)); err != nil || verdict != "done" {
		return h.lockError(fmt.Sprintf("the job %s: %s", job.ID, cmp.Or(value, errFrame.Error())))
	}
	return nil
}
