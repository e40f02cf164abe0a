package modules

import (
	"context"
	"fmt"
	"strings"

	"runbook/engine/module"
)

// pendingVariable is the value that a server variable will have once earlier tasks of this check have written option files and
// restarted the server, and the task of the restart; by is "" if no such file sets it. An option without a value is ON.
func pendingVariable(host *module.Host, name string) (value, by string) {
	restart := pendingRestart(host)
	for _, e := range host.Effects {
		if e.Kind != pathKind || e.Order > restart.Order || e.Maybe || !strings.HasSuffix(e.Name, ".cnf") {
			continue
		}
		if v, set := optionOf(string(e.Value.(pathEffect).content), name); set {
			value, by = v, restart.Task
		}
	}
	return value, by
}

// pendingRestart is the last start of the database's server among the effects; its Order is 0 if there is none.
func pendingRestart(host *module.Host) module.Effect {
	restart, _ := host.Effects.Find(func(e module.Effect) bool {
		server := strings.HasPrefix(e.Name, "mariadb") || strings.HasPrefix(e.Name, "mysql")
		return e.Kind == unitKind && server && e.Value.(unitEffect).started
	})
	return restart
}

// optionOnDisk is a server option as the server's next start will find it in the host's option files.
func optionOnDisk(ctx context.Context, host *module.Host, name string) (value string, set bool, err error) {
	out, err := hostScript(ctx, host, `for p in my_print_defaults mariadb-print-defaults; do
	if command -v "$p" >/dev/null; then "$p" server mysqld mariadb mariadbd || exit 1; exit 0; fi
done`)
	if err != nil {
		return "", false, fmt.Errorf("cannot read the server's option files: %w", err)
	}
	value, set = optionOf("[server]\n"+strings.ReplaceAll("\n"+string(out.Stdout), "\n--", "\n"), name)
	return value, set, nil
}

// optionOf is the last value of a server option in the text of an option file.
func optionOf(text, name string) (value string, set bool) {
	server := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if group, isGroup := strings.CutPrefix(line, "["); isGroup {
			group = strings.TrimSuffix(group, "]")
			server = group == "server" || strings.HasPrefix(group, "mysqld") || strings.HasPrefix(group, "mariadb")
			continue
		}
		key, v, hasValue := strings.Cut(line, "=")
		if !server || strings.ReplaceAll(strings.TrimSpace(key), "-", "_") != name {
			continue
		}
		if value, set = strings.TrimSpace(v), true; !hasValue {
			value = "ON"
		}
	}
	return value, set
}
