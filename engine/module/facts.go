package module

// Facts is what a host says of itself, gathered in one round trip.
type Facts struct {
	Family         string   // debian, rhel, suse, arch, alpine or the os-release ID
	Distribution   string   // os-release ID, such as debian, rocky
	Version        string   // os-release VERSION_ID, such as 12
	Major          int      // first number of Version, 0 if none
	Init           string   // systemd, sysv, openrc or unknown
	PackageManager string   // apt, dnf, yum, zypper or unknown
	Hostname       string   // as set
	FQDN           string   // with domain, the same as Hostname if the host knows none
	Addresses      []string // global IPv4 and IPv6 addresses, without prefix lengths
	Kernel         string   // uname -r
	Machine        string   // uname -m
	BootID         string
	MySQLFlavour   string // mariadb, mysql or "" (no server program found)
	MySQLVersion   string // such as 10.11.19, "" if no server program was found
}
