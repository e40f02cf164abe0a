#!/bin/sh
# The part of the image's recipe that comes after its packages. mmdebstrap runs it once, on the machine, with the
# new root as its argument. AVAILABLE names the packages to offer without installing them.
set -eu
root=$1
inside() { chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"; }

# A package repository in the image, holding what runbooks install. A host needs no way out for
# apt-get update and apt-get install to work for real, and its package lists stay small.
repo=$root/srv/packages
mkdir -p "$repo"
inside apt-get clean
inside apt-get install -y -qq --download-only --no-install-recommends $AVAILABLE
mv "$root"/var/cache/apt/archives/*.deb "$repo"
(
	cd "$repo"
	for deb in *.deb; do
		dpkg-deb --field "$deb"
		printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$deb" "$(stat -c %s "$deb")" "$(sha256sum <"$deb" | cut -d' ' -f1)"
	done >Packages
	printf 'Origin: lab\nSuite: lab\nSHA256:\n %s %s Packages\n' "$(sha256sum <Packages | cut -d' ' -f1)" "$(stat -c %s Packages)" >Release
)
rm -rf "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/var/lib/apt/lists
echo 'deb [trusted=yes] file:/srv/packages ./' >"$root/etc/apt/sources.list"
echo 'Acquire::Languages "none";' >"$root/etc/apt/apt.conf.d/10languages"
inside apt-get update -qq
inside apt-cache policy >"$root/dev/null" # leaves a current cache of the lists, so that later look-ups write nothing

# Logins beside root. The passwords are public: see RootPassword and OpsPassword.
inside useradd --create-home --uid 2001 --shell /bin/bash ops
inside useradd --create-home --uid 2002 --shell /bin/dash opspw
printf 'root:%s\nopspw:%s\n' "$ROOT_PASSWORD" "$OPS_PASSWORD" | inside chpasswd
printf 'ops ALL=(ALL:ALL) NOPASSWD: ALL\nopspw ALL=(ALL:ALL) ALL\n' >"$root/etc/sudoers.d/ops"
chmod 0440 "$root/etc/sudoers.d/ops"
# A person who uses the grid, with no rights on any host.
inside useradd --create-home --uid 2003 --shell /bin/bash alice

# sshd: each host brings its own key.
rm -f "$root"/etc/ssh/ssh_host_*
cat >"$root/etc/ssh/sshd_config.d/lab.conf" <<'CONF'
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UseDNS no
CONF

# The packet filter of a usual site: what is not named is refused, by a last rule. New rules must come before it.
cat >"$root/etc/iptables/rules.v4" <<'RULES'
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
COMMIT
RULES
sed -e 's/-p icmp /-p ipv6-icmp /' -e 's/icmp-host-prohibited/icmp6-adm-prohibited/' \
	"$root/etc/iptables/rules.v4" >"$root/etc/iptables/rules.v6"

# Nothing that wakes up by itself during a test, nothing that belongs to a machine, and an address from networkd.
inside systemctl --quiet enable systemd-networkd.service
inside systemctl --quiet disable systemd-networkd-wait-online.service
inside systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	fstrim.timer logrotate.timer console-getty.service getty.target systemd-random-seed.service
rm -f "$root/etc/hostname" "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"
: >"$root/etc/resolv.conf"
rm -rf "$root"/var/log/journal "$root"/var/log/apt/* "$root"/tmp/* "$root"/var/cache/apt/archives/*.deb
