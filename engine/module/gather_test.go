package module

import (
	"bytes"
	"context"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"runbook/engine/transport"
)

// shRunner runs scripts with the local sh, without a transport.
type shRunner struct{ path string }

func (r shRunner) Run(ctx context.Context, c transport.Cmd) (transport.Output, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh")
	cmd.Stdin = strings.NewReader(c.Script)
	if r.path != "" {
		cmd.Env = []string{"PATH=" + r.path}
	}
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	err := cmd.Run()
	return transport.Output{Stdout: stdout.Bytes()}, err
}

// A host without most tools still has facts.
func TestGatherFacts(t *testing.T) {
	for _, path := range []string{"", "/nowhere"} {
		f, err := GatherFacts(t.Context(), shRunner{path})
		if err != nil {
			t.Fatal(err)
		}
		if path == "" && (f.Hostname == "" || f.Kernel == "" || f.BootID == "" || f.Distribution == "unknown") {
			t.Errorf("facts are %+v", f)
		}
	}
}

func TestParseFacts(t *testing.T) {
	got := parseFacts("noise\n\x1eos\nNAME=\"Rocky Linux\"\nID=\"rocky\"\nID_LIKE=\"rhel centos\"\nVERSION_ID='9.3'\n\x1einit\nsystemd\n" +
		"\x1epackages\ndnf\n\x1ehostname\nvoms1\n\x1efqdn\nlocalhost.localdomain\n\x1eaddresses\n" +
		"2: eth0    inet 10.0.0.5/24 brd 10.0.0.255 scope global eth0\\       valid_lft forever\n3: eth0    inet6 2001:db8::5/64 scope global\n" +
		"\x1ekernel\n6.1\n\x1emachine\nx86_64\n\x1eboot\nb-1\n\x1emysql\nmariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu\n")
	want := Facts{
		Family: "rhel", Distribution: "rocky", Version: "9.3", Major: 9, Init: "systemd", PackageManager: "dnf",
		Hostname: "voms1", FQDN: "voms1", Addresses: []string{"10.0.0.5", "2001:db8::5"},
		Kernel: "6.1", Machine: "x86_64", BootID: "b-1", MySQLFlavour: "mariadb", MySQLVersion: "10.11.19",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	types := FactTypes()
	for name := range got.Map() {
		if types[name] == "" {
			t.Errorf("fact %s has no type", name)
		}
	}
}

func TestOlderSystems(t *testing.T) {
	for text, want := range map[string][3]string{
		"\x1eredhat\nCentOS release 5.11 (Final)\n":                            {"centos", "5.11", "rhel"},
		"\x1eredhat\nRed Hat Enterprise Linux Server release 6.9 (Santiago)\n": {"rhel", "6.9", "rhel"},
		"\x1eredhat\nScientific Linux SL release 5.11 (Boron)\n":               {"scientific", "5.11", "rhel"},
		"\x1edebian\n7.11\n":                    {"debian", "7.11", "debian"},
		"\x1eos\nID=opensuse-leap\nVERSION_ID=": {"opensuse-leap", "", "suse"},
		"":                                      {"unknown", "", "unknown"},
	} {
		f := parseFacts(text)
		if got := [3]string{f.Distribution, f.Version, f.Family}; got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestServerVersions(t *testing.T) {
	for text, want := range map[string][2]string{
		"/usr/sbin/mysqld  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)": {"mysql", "8.0.36"},
		"/usr/libexec/mysqld  Ver 5.0.77 for redhat-linux-gnu on x86_64":                  {"mysql", "5.0.77"},
		"mysqld  Ver 5.5.68-MariaDB for Linux on x86_64 (MariaDB Server)":                 {"mariadb", "5.5.68"},
		"mysqld: error while loading shared libraries":                                    {"", ""},
	} {
		flavour, version := parseServerVersion(text)
		if got := [2]string{flavour, version}; got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// What a host prints is only ever read: any text gives facts.
func FuzzParseFacts(f *testing.F) {
	f.Add("\x1eos\nID=\"deb\\\"ian\"\nVERSION_ID='12\n\x1eaddresses\n1: lo inet\n\x1emysql\nVer 1.2")
	f.Add("=\n\"=\"\nA=\"\\")
	f.Fuzz(func(t *testing.T, text string) {
		parseFacts(text)
		parseFacts("\x1eos\n" + text)
		parseFacts("\x1eredhat\n" + text)
		parseFacts("\x1eaddresses\n" + text)
	})
}
