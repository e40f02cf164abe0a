package transport

// jobLib is what every script about a job begins with. It expects id. The directory of jobs survives a restart of the host: root's
// is /var/lib/runbook/jobs, that of others is in their home, or in /var/tmp for accounts without one. Only one that belongs to the
// user is believed. A job's directory holds
//
//	pid      the supervisor's number, when it was started (the kernel's ticks), the host's boot id, seconds since that boot: the
//	         host's clock may be set while a job runs
//	out err  what the command wrote, up to a limit. Of what came after it NAME.over is the number of bytes, and NAME.more, behind
//	         NAME.last, the end: a few megabytes at most, for those who want to see how far it is
//	rc       its exit status; it is there only when it is whole
//	cut      why it was ended from outside, if it was: timeout, cancel or signal
const jobLib = `
umask 077
uid=$(id -u)
if [ "$uid" = 0 ]; then roots=1 first=/var/lib/runbook/jobs
else roots=2 first=${HOME:+$HOME/.local/state/runbook/jobs} second=/var/tmp/.runbook-jobs-$uid
fi
root() { # sets root to the nth candidate
	case $1 in 1) root=$first ;; *) root=$second ;; esac
	[ "$root" ] && [ "$1" -le $roots ]
}
ours() { [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ]; }
find_job() {
	for n in 1 2; do
		root $n && ours "$root" && [ -d "$root/$id" ] && job=$root/$id && return
	done
	return 1
}
split() {
	pid=${1%% *}
	set -- ${1##*) }
	state=$1 parent=$2 session=$4 began=${20}
}
read_all() {
	set +f
	all=$(cat /proc/[0-9]*/stat 2>/dev/null | sort -n)
	set -f
}
alive() { # does the supervisor live, or anything that it started and left behind
	leader= ticks= boot= since=0
	{ read -r leader ticks boot since <"$job/pid"; } 2>/dev/null
	read -r now </proc/sys/kernel/random/boot_id
	[ "$leader" ] && [ "$now" = "$boot" ] || return 1
	line=
	{ read -r line <"/proc/$leader/stat"; } 2>/dev/null
	if [ "$line" ]; then
		split "$line"
		[ "$began" != "$ticks" ] || [ "$state" = Z ] || return 0
	fi
	read_all
	IFS='
'
	for line in $all; do
		IFS=' '
		split "$line"
		if [ "$session" = "$leader" ] && [ "$state" != Z ] && [ "$began" -ge "$ticks" ]; then unset IFS; return 0; fi
	done
	unset IFS
	return 1
}
age() { # sets age to the seconds since the job's start; 0 if the host was started since
	age=0 up=0
	{ read -r up _ </proc/uptime; } 2>/dev/null
	from=${since%%.*}
	[ "$now" != "$boot" ] || age=$((${up%%.*} - ${from:-0}))
}
state() {
	status=running rc=- now= boot=
	if [ ! -e "$job/rc" ] && ! alive && [ ! -e "$job/rc" ]; then
		status=gone
		[ -z "$boot" ] || [ "$now" = "$boot" ] || status=restarted
	fi
	if [ -e "$job/rc" ]; then
		status=ended
		read -r rc <"$job/rc"
		{ read -r leader ticks boot since <"$job/pid"; } 2>/dev/null
		read -r now </proc/sys/kernel/random/boot_id
	fi
	age
	why=-
	if [ -s "$job/cut" ]; then read -r why <"$job/cut"; fi
}
`

// jobLook says how a job is: a line of its state, then, on both streams, what of its output is past the offsets out and err, max bytes
// at most of each; where nothing of that is left and the limit was passed, the end of what came after it follows, if tail is set.
// With a command (start) it starts the job first, unless it is there.
//
// A job comes into being by the rename of a directory that holds everything, its supervisor's identity included: of any number
// that try at once one succeeds, and the others find it. Only then is the command run. So whoever finds the directory knows that
// the command was started, and by whom.
const jobLook = jobLib + `
fail() { printf '%s\n' "$1" >&2; exit 1; }
begin() {
	command -v setsid >/dev/null || fail 'the host has no setsid (package util-linux)'
	for n in 1 2; do
		root $n || continue
		if [ $uid = 0 ] && [ ! -d /var/lib/runbook ]; then mkdir -p /var/lib/runbook && chmod 755 /var/lib/runbook; fi
		[ -d "$root" ] || mkdir -p "$root"
		ours "$root" && chmod 700 "$root" && new=$(mktemp -d "$root/.new.XXXXXXXX") && break
		new=
	done 2>/dev/null
	[ "$new" ] || fail "no directory for jobs can be made that belongs to $(id -un) alone: tried $first${second:+ and $second}"
	trap 'rm -rf "$new"' EXIT
	trap 'exit 143' HUP INT TERM
	cat >"$new/in" && printf '%s' "$text" >"$new/script" && printf '%s' "$supervisor" >"$new/run" ||
		fail "cannot write to $root: is the disk full?"
	setsid sh "$new/run" "$id" "$new" "$root/$id" "$mask" "$limit" </dev/null >/dev/null 2>"$new/said" &
	supervisor=$!
	until find_job; do
		if ! kill -0 $supervisor 2>/dev/null; then
			find_job && break
			fail "its supervisor ended: $(cat "$new/said" 2>/dev/null)"
		fi
		sleep 0.02 || sleep 1
	done
	# What starters that were killed left, and jobs that nobody has asked for in a month.
	( find "$root" -mindepth 1 -maxdepth 1 -type d \( -name '.new.*' -o -name '.old.*' \) -mmin +60 -exec rm -rf {} +
	find "$root" -mindepth 1 -maxdepth 1 -type d ! -name '.*' -mtime +30 | while read -r job; do
		now= boot= since=0
		{ read -r leader ticks boot since <"$job/pid"; read -r now </proc/sys/kernel/random/boot_id; } 2>/dev/null
		age
		[ "$now" != "$boot" ] || [ $age -gt 2592000 ] || continue # whatever the clock says
		[ -e "$job/rc" ] || ! alive || continue
		mv -T "$job" "$root/.old.$$" && rm -rf "$root/.old.$$"
	done ) </dev/null >/dev/null 2>&1 &
}
found=found
if ! find_job; then
	if [ -z "$start" ]; then echo job none - - 0 0 0 0 0; exit 0; fi
	found=started
	begin
fi
state
for pause in $pauses; do
	[ $status = running ] || break
	sleep $pause || break
	state
done
over() { # FILE: sets over to how much came after the limit
	over=0
	if [ -e "$job/$1.over" ]; then read -r over <"$job/$1.over"; fi
	over=$((${over:-0} + $(stat -c %s "$job/$1.more" || echo 0)))
} 2>/dev/null
over out
more=$over
over err
set -- $(stat -c %s "$job/out" "$job/err" 2>/dev/null) 0 0
printf 'job %s %s %s %s %s %s %s %s %s\n' $status "$rc" "$why" $age $1 $2 $more $over $found
part() { # FILE FROM SIZE OVER
	n=$(($3 - $2))
	if [ $n -gt $max ]; then
		n=$max
	elif [ "$tail" ] && [ $4 -gt 0 ]; then
		[ $n -le 0 ] || tail -c +$(($2 + 1)) "$job/$1" | head -c $n
		cat "$job/$1.last" "$job/$1.more" 2>/dev/null | tail -c 4096
		return
	fi
	[ $n -le 0 ] || tail -c +$(($2 + 1)) "$job/$1" | head -c $n
}
part out $out $1 $more
part err $err $2 $over >&2
exit 0
`

// jobSupervisor is the process that owns a job: ID NEW JOB MASK LIMIT. %s is the command as the inside of a subshell, with its input
// on descriptor 7 and its script on 8. Both are without a name by then, so that no secret stays behind whatever happens. Where root has
// a systemd, the job leaves the session that it was started from: nothing that ends a session, or restarts sshd, reaches it. So does
// that of a user who lingers, that is whose own systemd does not end when he logs out. The jobs of other users end with their session if
// logind kills what they leave behind (KillUserProcesses).
//
// The command writes into pipes, which have no names either. A process for each keeps the first LIMIT bytes, and counts and drops what
// comes after; it writes what it reads at once, and ends with the pipe's last writer. A signal meant for the command does not end it.
// Where the job's own disk is full it ends, and the command finds its output closed. What the command leaves behind, a daemon,
// may keep the pipe open: after the command's end, two idle seconds, or ten, are the end of the job's output. The process then goes on
// for as long as the daemon does, for which its output must not be closed.
const jobSupervisor = `id=$1 new=$2 job=$3 mask=$4 limit=$5 cut= keepers=
trap 'cut=signal' HUP INT TERM
read -r line </proc/$$/stat
read -r boot </proc/sys/kernel/random/boot_id
read -r up _ </proc/uptime
set -- ${line##*) }
printf '%%s %%s %%s %%s\n' $$ "${20}" "$boot" "$up" >"$new/pid" && : >"$new/out" && : >"$new/err" && echo '   ' >"$new/rc.part" &&
	mkfifo "$new/out.pipe" "$new/err.pipe" || exit
keep() {
	trap '' HUP INT TERM
	f=$job/$1 kept=0 over=0
	while left=$((limit - kept)) && [ $left -gt 0 ]; do
		size=65536
		[ $left -ge $size ] || size=4096
		[ $left -ge $size ] || size=$left
		if ! dd bs=$size count=$((left / size)) >>"$f" || ! now=$(stat -c %%s "$f"); then
			[ -d "$job" ] && [ ! -e "$job/rc" ] || exec cat >/dev/null
			exit 1
		fi
		[ $now -gt $kept ] || exit 0
		kept=$now
	done
	while dd bs=65536 count=64 of="$f.more" && size=$(stat -c %%s "$f.more") && [ $size -gt 0 ]; do
		mv "$f.more" "$f.last"
		over=$((over + size))
		echo $over >"$f.over"
	done
	exec cat >/dev/null
}
exec 7<"$new/in" 8<"$new/script" 5<>"$new/out.pipe" 6>"$new/out.pipe" 9<"$new/out.pipe" 5<>"$new/err.pipe" 4>"$new/err.pipe" 3<"$new/err.pipe" 5<&-
rm -f "$new/in" "$new/script" "$new/run" "$new/out.pipe" "$new/err.pipe"
mv -T "$new" "$job" 2>/dev/null || { rm -rf "$new"; exit; }
sync "$job/pid" "$job" "${job%%/*}" 2>/dev/null || sync
uid=$(id -u) bus=
if [ $uid = 0 ]; then
	bus=--system
elif [ -e "/var/lib/systemd/linger/$(id -un)" ]; then
	bus=--user
fi
if [ "$bus" ] && [ -d /run/systemd/system ] && XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$uid} timeout 10 busctl $bus call \
	org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager StartTransientUnit 'ssa(sv)a(sa(sv))' \
	"runbook-job-$id.scope" fail 2 PIDs au 1 $$ Description s "runbook job $id" 0 >/dev/null 2>&1; then
	for pause in 0.01 0.02 0.05 0.1 0.2 0.5 1; do
		grep -q "/runbook-job-$id.scope" /proc/$$/cgroup && break
		sleep $pause || sleep 1
	done
fi
( exec <&9 3<&- 4>&- 6>&- 7<&- 8<&- 9<&-; keep out ) >/dev/null 2>&1 &
keepers=$!
( exec <&3 3<&- 4>&- 6>&- 7<&- 8<&- 9<&-; keep err ) >/dev/null 2>&1 &
keepers="$keepers $!"
exec 3<&- 9<&-
( umask "$mask"; %s ) <&7 7<&- >&6 2>&4 4>&- 6>&-
rc=$?
exec 4>&- 6>&-
all_kept() {
	for keeper in $keepers; do
		line=
		{ read -r line <"/proc/$keeper/stat"; } 2>/dev/null
		case ${line##*) } in ''|Z*|X*) ;; *) return 1 ;; esac
	done
}
sizes= idle=0 total=0
until all_kept || [ $idle -ge 20 ] || [ $total -ge 100 ]; do
	now=$(cd "$job" && stat -c %%s out err *.more *.over 2>/dev/null)
	[ "$now" = "$sizes" ] || idle=0
	sizes=$now idle=$((idle + 1)) total=$((total + 1))
	sleep 0.1 || sleep 1
done
[ -z "$cut" ] || [ -e "$job/cut" ] || echo $cut >"$job/cut"
# In place: where the command has filled the disk there is no room for anything new.
printf '%%-3d\n' $rc | dd of="$job/rc.part" conv=notrunc 2>/dev/null && { sync "$job/rc.part" 2>/dev/null || sync; mv "$job/rc.part" "$job/rc"; }
`

// jobEnd ends a job's processes: SIGTERM, two seconds of grace, SIGKILL. Its processes are those of its session and their
// children; its supervisor is left to say how the command ended. reason says why.
const jobEnd = jobLib + `
members() {
	read_all
	again=1
	while [ "$again" ]; do
		again=
		IFS='
'
		for line in $all; do
			IFS=' '
			split "$line"
			[ "$state" != Z ] && [ "$pid" != "$leader" ] && [ "$pid" != $$ ] || continue
			case $list in *" $pid:$began "*) continue ;; esac
			if [ "$session" != "$leader" ] || [ "$began" -lt "$ticks" ]; then
				case $list in *" $parent:"*) ;; *) continue ;; esac
			fi
			list="$list$pid:$began " again=1
		done
	done
}
each() {
	none=1
	members
	IFS='
'
	for line in $all; do
		IFS=' '
		split "$line"
		[ "$state" != Z ] || continue
		case $list in *" $pid:$began "*) none=0; kill "-$1" "$pid" 2>/dev/null ;; esac
	done
	return $none
}
over() {
	for pause in 0.05 0.1 0.2 0.4 0.6 0.7; do
		sleep $pause || sleep 1
		each 0 || return 0
	done
	return 1
}
find_job && [ ! -e "$job/rc" ] && alive || exit 0
list=' '
echo "$reason" >"$job/cut"
each TERM
over || { each KILL; each KILL; }
for pause in 0.05 0.1 0.2 0.4 0.6 0.7 1 1; do
	[ ! -e "$job/rc" ] || exit 0
	sleep $pause || sleep 1
done
kill -KILL "$leader" 2>/dev/null
exit 0
`

// jobRemove removes what is left of a job that is over.
const jobRemove = jobLib + `
find_job || exit 0
state
if [ $status = running ]; then echo 'it is still running' >&2; exit 1; fi
old=$(mktemp -d "$root/.old.XXXXXXXX") && mv -T "$job" "$old/job" && rm -rf "$old"
`
