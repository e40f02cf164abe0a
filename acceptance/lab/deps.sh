#!/bin/sh
# Installs what the lab and the tests need on a Debian machine, if anything is missing and we are root. Starts no service, and leaves
# none enabled that was not there before. Go is not among it: see README.
set -eu

packages="systemd-container mmdebstrap iproute2 util-linux openssl strace csh busybox openssh-client openssh-server mariadb-server iptables sudo perl dnf rpm createrepo-c gcc libc6-dev"

missing=
for package in $packages; do
	if [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
		missing="$missing $package"
	fi
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "not installed, and only root can:$missing; tests that need them will be skipped"
	exit 0
fi
echo "installing:$missing"

# Servers are for the tests to start, each its own. While this file says so, no package starts one.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod +x "$policy"
	trap 'rm -f "$policy"' EXIT
	trap 'exit 1' HUP INT TERM
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends $missing >/dev/null
for unit in ssh:openssh-server mariadb:mariadb-server; do
	case " $missing " in
	*" ${unit#*:} "*) systemctl --quiet disable "${unit%%:*}.service" ;;
	esac
done
