#!/bin/sh
# Alice, on ui, asks for proxies. Printed are the servers that her client asked and how that went, what the proxy grants, who
# signed it, and the address of who gave it.
#
#	proxy VO[:FQAN]                     from any server that the host knows of
#	proxy VO[:FQAN] SERVER              from this one
#	proxy VO[:FQAN] -past SERVER        again and again, until the client began with this one and went on to another
#	proxy VO[:FQAN] -from SERVER...     20 times and more, until each of these has given one
#
# The last two fail with the first proxy that is not given. They wait because the client throws its dice once a second: calls
# that follow each other closely all begin with the same server. CERT and KEY name files of somebody else, VOMSES another folder
# of servers.
[ "$(id -u)" != 0 ] || exec setpriv --reuid=alice --regid=alice --init-groups env HOME=/home/alice "$0" "$@"
umask 077
dir=$(mktemp -d) || exit
trap 'rm -rf "$dir"' EXIT
wanted=$1 vo=${1%%:*} how=$2 patience=60
shift "$(($# < 2 ? $# : 2))"
servers=${VOMSES:-/etc/vomses}/$vo

ask() {
	rm -f "$dir/proxy"
	# A short key is made ten times as fast, and is all the same to the servers: they see the user's own.
	voms-proxy-init2 -voms "$wanted" -vomses "$servers" -bits 1024 -cert "${CERT:-$HOME/.globus/usercert.pem}" \
		-key "${KEY:-$HOME/.globus/userkey.pem}" -out "$dir/proxy" >"$dir/log" 2>&1
	status=$?
	asked=$(sed -n 's/^Contacting  *\([^ ]*\) .* \(Done\|Failed\)$/asked \1 \2/p' "$dir/log")
	if [ $status != 0 ]; then
		echo "$asked"
		grep -a -A 1 '^Error' "$dir/log" >&2
		exit 1
	fi
	from=$(voms-proxy-info2 -file "$dir/proxy" -uri)
}

case $how in
-past)
	until
		ask
		[ "${asked#"asked $1:"}" != "$asked" ] && [ "${from%:*}" != "$1" ]
	do
		[ $((patience -= 1)) -gt 0 ] || { echo "the client never went past $1; the last proxy is of $from" >&2; exit 1; }
		sleep 0.5
	done
	;;
-from)
	i=0
	: >"$dir/all"
	while
		ask
		echo "$from" >>"$dir/all"
		i=$((i + 1)) missing=
		for server; do grep -q "^$server:" "$dir/all" || missing="$missing $server"; done
		[ $i -lt 20 ] || [ "$missing" ]
	do
		[ $i -lt 20 ] || [ $((patience -= 1)) -gt 0 ] || { echo "of $i proxies none is of$missing" >&2; exit 1; }
		[ $i -lt 20 ] || sleep 0.5
	done
	sort "$dir/all" | uniq -c
	;;
'') ask ;;
*)
	grep -F "\"$how\"" "$servers" >"$dir/servers" || { echo "ui knows no server $how of $vo" >&2; exit 1; }
	servers=$dir/servers
	ask
	;;
esac
echo "$asked"
voms-proxy-info2 -file "$dir/proxy" -fqan
echo "signed by $(voms-proxy-info2 -file "$dir/proxy" -acissuer)"
echo "given by $from"
