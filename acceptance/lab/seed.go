package lab

import (
	"context"
	_ "embed"
	"fmt"
	"strings"
)

//go:embed seed.sql
var seedSQL string

// Databases are those that Seed creates.
var Databases = []string{"voms_lab_vo", "voms_calib_example_org", "cns_db"}

// Seed creates the service databases on a host, and the accounts that their service uses: voms, which may read and write them.
func (h *Host) Seed(ctx context.Context) error {
	var accounts strings.Builder
	for _, db := range Databases {
		fmt.Fprintf(&accounts, "GRANT SELECT, INSERT, UPDATE, DELETE ON %s.* TO voms@localhost IDENTIFIED BY '%s';\n", db, ServicePassword)
	}
	_, err := h.SQL(ctx, seedSQL+accounts.String())
	return err
}

// ServicePassword is that of the account voms@localhost.
const ServicePassword = "service of the lab 7"

// SQL runs statements as the host's database administrator and returns rows as lines with tabs.
func (h *Host) SQL(ctx context.Context, statements string) (string, error) {
	return h.exec(ctx, statements, "mariadb", "--batch", "--skip-column-names", "--default-character-set=utf8mb4")
}

// Inventory returns an inventory of the lab's hosts for runbook: voms1 is the master, voms2 the slave.
func (l *Lab) Inventory() string {
	var b strings.Builder
	fmt.Fprintf(&b, "groups:\n  all:\n    user: root\n    identity_file: %s\n    known_hosts: %s\n    ssh_config: none\n", l.Identity(), l.KnownHosts())
	groups := map[string]string{"voms1": "master", "voms2": "slave", "ui": "ui", "stranger": "others"}
	last := ""
	for _, name := range []string{"voms1", "voms2", "ui", "stranger"} {
		h := l.Host(name)
		if h == nil {
			continue
		}
		if group := groups[name]; group != last {
			fmt.Fprintf(&b, "  %s:\n    hosts:\n", group)
			last = group
		}
		fmt.Fprintf(&b, "      %s: {address: %s}\n", h.FQDN(), h.Address())
	}
	return b.String()
}
