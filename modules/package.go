package modules

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"runbook/engine/module"
	"runbook/engine/transport"
)

func init() {
	register("package", func() module.Module {
		return &packages{State: "present", CacheValidTime: time.Hour, LockTimeout: 2 * time.Minute, Use: "auto"}
	})
}

// packages sees to it that packages are installed, or not, by apt, dnf or yum.
//
// A list is one transaction. Whether a package is there is asked of the package database; only where something is to be done, the
// resolver makes a dry run, and the change shows exactly what it would install, upgrade and remove, dependencies included. The dry
// run works with the package lists that the host has: nothing is fetched and nothing is written but the resolver's own log.
//
// Package lists that are fetched anew (update_cache) are no change by themselves: it is done before packages are
// installed, and only then. Signatures are always checked. A configuration file that was edited on the host is kept. A transaction
// outlives the connection: nothing is left half installed because a link broke.
//
//	tasks:
//	  - name: stunnel is installed
//	    package: {names: {debian: stunnel4, rhel: stunnel}, update_cache: true}
type packages struct {
	module.LongStep
	// Names as the host's package manager has them, or name=version to have that version, in which * stands for anything.
	Name []string `yaml:"name" short:"true"`
	// Names by distribution or family (debian, rhel, …) where they differ. Those of name are for hosts that are not mentioned.
	Names map[string][]string `yaml:"names"`
	// Whether the packages are to be installed; latest also upgrades them to the newest version that the package lists have.
	State string `yaml:"state" choices:"present,absent,latest"`
	// Fetch the package lists before installing if they are older than cache_valid_time.
	UpdateCache bool `yaml:"update_cache"`
	// Age up to which package lists are good enough, at least a minute.
	CacheValidTime time.Duration `yaml:"cache_valid_time"`
	// Whether packages that are recommended are installed as well: true or false; by default as the host is configured.
	InstallRecommends any `yaml:"install_recommends"`
	// How long to wait while another program holds the package manager's lock.
	LockTimeout time.Duration `yaml:"lock_timeout"`
	// Do not start services while packages are installed. On Debian a policy-rc.d says so for as long as the installation runs; one that
	// is there already is back in its place afterwards. RPM packages start nothing by themselves.
	NoStart bool `yaml:"no_start"`
	// Repositories to enable for this task (dnf and yum).
	EnableRepo []string `yaml:"enablerepo"`
	// Repositories to disable for this task (dnf and yum).
	DisableRepo []string `yaml:"disablerepo"`
	// Let name=version replace a newer version.
	AllowDowngrade bool `yaml:"allow_downgrade"`
	// Package manager, or what the host has.
	Use string `yaml:"use" choices:"auto,apt,dnf,yum"`
}

var (
	packageName = regexp.MustCompile(`^[A-Za-z0-9@_][A-Za-z0-9@_+.:~()/-]*$`)
	packagePin  = regexp.MustCompile(`^[A-Za-z0-9*][A-Za-z0-9+.:~^_*-]*$`)
	repoName    = regexp.MustCompile(`^[A-Za-z0-9_.:*-]+$`)
)

// Validate refuses names that no package has and arguments that contradict each other.
func (p *packages) Validate() error {
	var errs []error
	refuse := func(arg, msg, hint string) { errs = append(errs, &module.ArgError{Path: arg, Msg: msg, Hint: hint}) }
	if len(p.Name) == 0 && len(p.Names) == 0 {
		refuse("name", "required argument is missing", "give name or names")
	}
	check := func(arg string, list []string) {
		for i, text := range list {
			at := fmt.Sprintf("%s[%d]", arg, i)
			name, pin, pinned := strings.Cut(text, "=")
			switch {
			case !packageName.MatchString(name) || strings.HasSuffix(name, "-"):
				refuse(at, fmt.Sprintf("%q is not the name of a package", text), "")
			case pinned && !packagePin.MatchString(pin):
				refuse(at, fmt.Sprintf("%q is not a version", pin), "")
			case pinned && p.State != "present":
				refuse(at, "a version goes with state present only", "")
			}
		}
	}
	check("name", p.Name)
	for _, family := range sortedKeys(p.Names) {
		check("names."+family, p.Names[family])
	}
	if _, ok := p.InstallRecommends.(bool); p.InstallRecommends != nil && !ok {
		refuse("install_recommends", "expected true or false", "without quotes")
	}
	for arg, list := range map[string][]string{"enablerepo": p.EnableRepo, "disablerepo": p.DisableRepo} {
		for i, repo := range list {
			if !repoName.MatchString(repo) {
				refuse(fmt.Sprintf("%s[%d]", arg, i), fmt.Sprintf("%q is not the name of a repository", repo), "")
			}
		}
		if len(list) > 0 && p.Use == "apt" {
			refuse(arg, "needs dnf or yum", "")
		}
	}
	return errors.Join(errs...)
}

// Returns documents the result.
func (p *packages) Returns() []module.Return {
	return []module.Return{
		{Name: "versions", Type: "map", Help: "installed version by name, of the packages that were asked for"},
		{Name: "packages", Type: "list", Help: "names of all packages that change, dependencies included"},
	}
}

// packageLib is what both scripts begin with: it finds the package manager and says what is installed.
const packageLib = `PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
DEBIAN_FRONTEND=noninteractive APT_LISTCHANGES_FRONTEND=none
export PATH DEBIAN_FRONTEND APT_LISTCHANGES_FRONTEND
use=$1 state=$2
section() { printf '\036%s\n' "$1"; }
has() { command -v "$1" >/dev/null 2>&1; }
if [ "$use" = auto ]; then
	use=
	if has apt-get; then use=apt
	elif has dnf; then use=dnf
	elif has yum; then use=yum
	fi
fi
admin=${DPKG_ADMINDIR:-${DPKG_ROOT:-}/var/lib/dpkg}
policy=${DPKG_ROOT:-}/usr/sbin/policy-rc.d
evr='%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\n'
versions() { # installed versions of a package, one a line
	if [ "$use" = apt ]; then
		dpkg-query -W -f='${Status} ${Version}\n' "$1" 2>/dev/null | sed -n 's/^[a-z]* ok installed //p'
	else
		v=$(rpm -q --qf "$evr" "$1" 2>/dev/null) || v=$(rpm -q --qf "$evr" --whatprovides "$1" 2>/dev/null) || v=
		printf '%s\n' "$v"
	fi
}
fits() { # does version $1 fit pin $2: with or without an RPM's epoch and release
	case $1 in $2) return 0 ;; esac
	[ "$use" != apt ] || return 1
	case $1 in *:*) ;; *) case 0:$1 in $2) return 0 ;; esac ;; esac
	case ${1#*:} in $2) return 0 ;; esac
	v=${1%-*}
	case ${v#*:} in $2) return 0 ;; esac
	return 1
}
`

const packageCheckScript = packageLib + `repos=$3 flags=$4
shift 4
section manager; echo "$use"
[ -n "$use" ] || exit 0
todo=
section have
for p; do
	name=${p%%=*}
	good=
	for v in $(versions "$name"); do
		printf '%s\t%s\n' "$name" "$v"
		case $p in
		*=*) if fits "$v" "${p#*=}"; then good=yes; fi ;;
		*) good=yes ;;
		esac
	done
	case $state$good in presentyes | absent) ;; *) todo="$todo $p" ;; esac
done
if [ "$use" = apt ]; then
	case $(ls "$admin/updates" 2>/dev/null) in [0-9]*) section interrupted ;; esac
	if grep -q '^# runbook: ' "$policy" 2>/dev/null || [ -e "$policy.runbook" ]; then section policy; fi
fi
[ -n "$todo" ] || exit 0
set -f
section todo; echo $todo
section preview
verb=install
[ "$state" != absent ] || verb=remove
if [ "$use" = apt ]; then
	lists=
	eval "$(apt-config shell lists Dir::State::lists/d)"
	# Without the caches, which would be written anew if they are out of date, and without a log of what is simulated.
	apt-get -s -q -y -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Dir::Log::Planner= -o Dir::Log::Solver= $flags $verb -- $todo 2>&1
	code=$?
	set +f
	newest=$(for f in "$lists"/*Packages* "$lists"/*InRelease "$lists"/*_Release; do if [ -e "$f" ]; then stat -c %Y "$lists"; break; fi; done)
else
	install= upgrade=
	for p in $todo; do
		case $(versions "${p%%=*}") in
		'') install="$install $(echo "$p" | sed 's/=/-/')" ;;
		*) case $p in *=*) install="$install $(echo "$p" | sed 's/=/-/')" ;; *) upgrade="$upgrade $p" ;; esac ;;
		esac
	done
	preview() {
		if [ "$use" = dnf ]; then dnf -C --assumeno $repos $flags "$@" 2>&1
		else echo n | yum -C $repos $flags "$@" 2>&1; fi
	}
	code=0
	if [ $verb = remove ]; then preview remove $todo
	else
		[ -z "$install" ] || preview install $install
		[ -z "$upgrade" ] || preview upgrade $upgrade
	fi
	section installed; rpm -qa --qf "%{NAME}\t$evr"
	newest=$(find /var/cache/$use -name repomd.xml -exec stat -c %Y {} + 2>/dev/null | sort -n | tail -n 1)
fi
section code; echo "$code"
section age; if [ -n "$newest" ]; then echo $(($(date +%s) - newest)); fi
exit 0
`

// packagePlan is what Apply does.
type packagePlan struct {
	manager string
	todo    []string
	refresh bool // fetch the package lists first
	repair  bool // finish what an interrupted dpkg left, remove a policy-rc.d that a killed run left
	changed []any
}

// names are the packages for the host.
func (p *packages) names(ctx context.Context, host *module.Host) ([]string, error) {
	if len(p.Names) == 0 {
		return p.Name, nil
	}
	facts, err := host.Facts(ctx)
	if err != nil {
		return nil, err
	}
	for _, key := range []string{facts.Distribution, facts.Family} {
		if names, ok := p.Names[key]; ok {
			return names, nil
		}
	}
	if len(p.Name) > 0 {
		return p.Name, nil
	}
	return nil, fmt.Errorf("names says nothing for %s (family %s), only for %s", facts.Distribution, facts.Family, strings.Join(sortedKeys(p.Names), ", "))
}

// repos are the options of dnf and yum that enable and disable repositories.
func (p *packages) repos() string {
	var options []string
	for _, r := range p.EnableRepo {
		options = append(options, "--enablerepo="+r)
	}
	for _, r := range p.DisableRepo {
		options = append(options, "--disablerepo="+r)
	}
	return strings.Join(options, " ")
}

// flags are the other options of each package manager, as name and options.
func (p *packages) flags(manager string) string {
	var options []string
	recommends, set := p.InstallRecommends.(bool)
	switch manager {
	case "apt":
		options = []string{"-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"}
		if set {
			options = append(options, "-o", "APT::Install-Recommends="+strconv.FormatBool(recommends))
		}
		if p.AllowDowngrade {
			options = append(options, "--allow-downgrades")
		}
	case "dnf":
		if set {
			options = append(options, "--setopt=install_weak_deps="+strconv.FormatBool(recommends))
		}
	}
	return strings.Join(options, " ")
}

// chooseFlags is sh text that sets flags for the package manager that was found.
func (p *packages) chooseFlags() string {
	return fmt.Sprintf("case $use in apt) flags=%s ;; dnf) flags=%s ;; *) flags= ;; esac\n", transport.Quote(p.flags("apt")), transport.Quote(p.flags("dnf")))
}

// Check asks the package database and, where something is to be done, the resolver.
func (p *packages) Check(ctx context.Context, host *module.Host) (module.Plan, error) {
	names, err := p.names(ctx, host)
	if err != nil {
		return module.Plan{}, err
	}
	if doubt := inDoubt(host, packageKind, names...); doubt != nil {
		return *doubt, nil
	}
	names, task := p.outstanding(host, names)
	if len(names) == 0 {
		return module.Plan{Values: module.Values{}, Hangs: task}, nil
	}
	script := strings.Replace(packageCheckScript, "shift 4\n", "shift 4\n"+p.chooseFlags(), 1)
	out, err := hostScript(ctx, host, script, append([]string{p.Use, p.State, p.repos(), ""}, names...)...)
	if err != nil {
		return module.Plan{}, fmt.Errorf("cannot read what is installed: %w", err)
	}
	s := iptSections(string(out.Stdout))
	manager := strings.TrimSpace(s["manager"])
	switch {
	case manager == "":
		return module.Plan{}, errors.New("no package manager on the host: looked for apt-get, dnf and yum")
	case manager == "apt" && len(p.EnableRepo)+len(p.DisableRepo) > 0:
		return module.Plan{}, errors.New("enablerepo and disablerepo need dnf or yum: the host has apt")
	}
	versions := packageVersions(s["have"])
	do := packagePlan{manager: manager, todo: strings.Fields(s["todo"]), changed: []any{}}
	plan := module.Plan{Values: module.Values{"versions": versions, "packages": []any{}}}
	for section, what := range map[string]string{
		"interrupted": "finish the installation that was interrupted",
		"policy":      "remove the policy-rc.d that an interrupted run left",
	} {
		if _, found := s[section]; found {
			do.repair = true
			plan.Changes = append(plan.Changes, module.Change{What: what})
		}
	}
	if len(do.todo) > 0 {
		if err := p.preview(&plan, &do, s, versions); err != nil {
			return module.Plan{}, err
		}
	}
	plan.Values["packages"] = do.changed
	plan.Pending = len(plan.Changes) > 0 || plan.Unknown != ""
	plan.Effects = packageEffects(plan.Changes)
	plan.State = do
	return plan, nil
}

// outstanding are the packages that no earlier task of this check will have brought or removed; task is one that will have the others.
func (p *packages) outstanding(host *module.Host, names []string) (left []string, task string) {
	for _, name := range names {
		if e, pending := host.Effects.Last(packageKind, name); pending && e.Value == (p.State != "absent") {
			task = e.Task
			continue
		}
		left = append(left, name)
	}
	return left, task
}

func packageEffects(changes []module.Change) []module.Effect {
	var list []module.Effect
	for _, c := range changes {
		verb, name, _ := strings.Cut(c.What, " ")
		list = append(list, module.Effect{Kind: packageKind, Name: name, Value: verb != "remove"})
	}
	return list
}

// packageVersions reads lines of name and version.
func packageVersions(text string) map[string]any {
	versions := map[string]any{}
	for line := range strings.Lines(text) {
		if name, version, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			versions[name] = version
		}
	}
	return versions
}

// preview reads the resolver's dry run into the plan.
func (p *packages) preview(plan *module.Plan, do *packagePlan, s map[string]string, versions map[string]any) error {
	age, ageErr := strconv.Atoi(strings.TrimSpace(s["age"]))
	listAge := time.Duration(age) * time.Second
	old := ageErr != nil || listAge > max(p.CacheValidTime, time.Minute)
	do.refresh = p.UpdateCache && old && p.State != "absent"
	lists := "there are no package lists yet"
	if ageErr == nil {
		lists = "the package lists are " + roughly(listAge) + " old"
	}

	var changes []module.Change
	problem := ""
	if do.manager == "apt" {
		changes = parseAptPreview(s["preview"])
		if strings.TrimSpace(s["code"]) != "0" {
			problem = aptProblem(s["preview"])
		}
	} else {
		changes = parseDnfPreview(s["preview"], packageVersions(s["installed"]))
		problem = dnfProblem(s["preview"])
	}
	noMetadata := do.manager != "apt" && noCache.MatchString(s["preview"])
	if noMetadata {
		lists = "there are no package lists yet"
	}
	switch {
	case problem != "" && (do.refresh || noMetadata):
		// What the fetched lists will have, nobody knows yet.
		for _, name := range do.todo {
			name, _, _ = strings.Cut(name, "=")
			before, _ := versions[name].(string)
			plan.Changes = append(plan.Changes, module.Change{What: "install " + name, Before: before, After: "whatever version the lists then have"})
			do.changed = append(do.changed, name)
		}
		plan.Unknown = lists + ": a run fetches them first (now: " + problem + ")"
		return nil
	case problem != "":
		if strings.HasPrefix(problem, "no package") || strings.HasPrefix(problem, "no version") {
			if !p.UpdateCache && (ageErr != nil || listAge > 24*time.Hour) {
				problem += " (" + lists + "; update_cache: true fetches them)"
			}
		}
		return errors.New(problem)
	case p.State == "latest" && do.refresh:
		plan.Unknown = lists + ": a run fetches them first, and they may have newer versions"
	}
	for _, c := range changes {
		verb, name, _ := strings.Cut(c.What, " ")
		if verb == "downgrade" && !p.AllowDowngrade {
			return fmt.Errorf("%s %s is installed and newer than %s (allow_downgrade: true replaces it)", name, c.Before, c.After)
		}
		if do.refresh && c.After != "" {
			c.After += " or newer (" + lists + "; a run fetches them first)"
		}
		plan.Changes = append(plan.Changes, c)
		do.changed = append(do.changed, name)
	}
	return nil
}

// roughly is an age for people.
func roughly(d time.Duration) string {
	switch {
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

var (
	aptLine       = regexp.MustCompile(`^(Inst|Conf|Remv|Purg) (\S+)(?: \[([^\]]*)\])?(?: \((\S+))?`)
	aptNoPackage  = regexp.MustCompile(`(?m)^E: (?:Unable to locate package (\S+)|Package '([^']+)' has no installation candidate)`)
	aptNoVersion  = regexp.MustCompile(`(?m)^E: Version '([^']+)' for '([^']+)' was not found`)
	dnfNoPackage  = regexp.MustCompile(`(?m)^(?:No match for argument: |No package )(.*?)(?: available\.?)?\s*$`)
	dnfSection    = regexp.MustCompile(`^(Installing|Upgrading|Updating|Downgrading|Reinstalling|Removing|Erasing)( .*)?:$`)
	dnfVerb       = map[string]string{"Installing": "install", "Upgrading": "upgrade", "Updating": "upgrade", "Downgrading": "downgrade", "Reinstalling": "reinstall", "Removing": "remove", "Erasing": "remove"}
	noCache       = regexp.MustCompile(`(?i)no (?:local )?cache (?:for|of) `)
	terminalCodes = regexp.MustCompile(`\x1b\[[0-9;]*m`)
)

// parseAptPreview reads what apt-get -s would do.
func parseAptPreview(text string) []module.Change {
	downgraded := map[string]bool{}
	inDowngrades := false
	installed := map[string]bool{}
	var changes []module.Change
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if inDowngrades = strings.Contains(line, "packages will be DOWNGRADED:") || inDowngrades && strings.HasPrefix(line, " "); inDowngrades {
			for _, name := range strings.Fields(line) {
				downgraded[name] = true
			}
		}
		found := aptLine.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		what, name, before, after := found[1], found[2], found[3], found[4]
		switch {
		case what == "Conf" && installed[name]:
			continue
		case what == "Conf":
			changes = append(changes, module.Change{What: "configure " + name, After: after})
		case what == "Inst":
			installed[name] = true
			verb := "install"
			if downgraded[name] {
				verb = "downgrade"
			} else if before != "" {
				verb = "upgrade"
			}
			changes = append(changes, module.Change{What: verb + " " + name, Before: before, After: after})
		default:
			changes = append(changes, module.Change{What: "remove " + name, Before: before})
		}
	}
	return changes
}

// aptProblem is why apt-get refused.
func aptProblem(text string) string {
	if found := aptNoPackage.FindAllStringSubmatch(text, -1); found != nil {
		var names []string
		for _, f := range found {
			names = append(names, f[1]+f[2])
		}
		return noPackage(names)
	}
	if found := aptNoVersion.FindStringSubmatch(text); found != nil {
		return fmt.Sprintf("no version %s of package %q in the repositories", found[1], found[2])
	}
	if strings.Contains(text, "without --allow-downgrades") {
		return "the version asked for is older than the one installed (allow_downgrade: true replaces it)"
	}
	if _, unmet, ok := strings.Cut(text, "The following packages have unmet dependencies:\n"); ok {
		return "packages have unmet dependencies:\n" + strings.TrimSpace(unmet)
	}
	return "apt-get: " + tail(text, 10)
}

func noPackage(names []string) string {
	slices.Sort(names)
	var quoted []string
	for _, name := range slices.Compact(names) {
		quoted = append(quoted, strconv.Quote(name))
	}
	return "no package " + strings.Join(quoted, ", ") + " in the repositories"
}

// tail is the end of a long text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// parseDnfPreview reads the table of what dnf or yum would do. have is what is installed, of which the table does not tell.
func parseDnfPreview(text string, have map[string]any) []module.Change {
	var changes []module.Change
	verb := ""
	var row []string
	flush := func() {
		if len(row) >= 3 && verb != "" {
			name, version := row[0], row[2]
			before, _ := have[name].(string)
			c := module.Change{What: verb + " " + name, Before: before, After: version}
			if verb == "remove" {
				c.Before, c.After = version, ""
			}
			changes = append(changes, c)
		}
		row = nil
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(terminalCodes.ReplaceAllString(line, ""), " \r\n")
		if found := dnfSection.FindStringSubmatch(line); found != nil {
			flush()
			verb = dnfVerb[found[1]]
			continue
		}
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || line[0] != ' ':
			flush()
			verb = ""
		case verb == "":
		case words[0] == "replacing" && len(words) == 3:
			flush()
			name := words[1]
			if i := strings.LastIndex(name, "."); i > 0 {
				name = name[:i]
			}
			changes = append(changes, module.Change{What: "remove " + name, Before: words[2]})
		case !strings.HasPrefix(line, "  "): // a row has one space before it; the lines that continue it have more
			flush()
			row = words
		default:
			row = append(row, words...)
		}
	}
	flush()
	return changes
}

// dnfProblem is why dnf or yum refused, "" if it did not.
func dnfProblem(text string) string {
	var names []string
	for _, found := range dnfNoPackage.FindAllStringSubmatch(text, -1) {
		names = append(names, found[1])
	}
	if len(names) > 0 {
		return noPackage(names)
	}
	if _, after, ok := strings.Cut("\n"+text, "\nError: "); ok && !strings.HasPrefix(after, "Nothing to do") {
		after, _, _ = strings.Cut(after, "\n(try to add")
		after, _, _ = strings.Cut(after, "\nOperation aborted")
		return strings.TrimSpace(after)
	}
	return ""
}

const packageApplyScript = packageLib + `repos=$3 lock=$4 refresh=$5 nostart=$6 repair=$7 count=$8
shift 8
log=$(mktemp) || exit 1
ours= saved= watch= on=
cleanup() {
	rm -f "$on"
	[ -z "$watch" ] || kill $watch 2>/dev/null
	if [ -n "$saved" ]; then mv -f "$saved" "$policy"; elif [ -n "$ours" ]; then rm -f "$policy"; fi
	ours= saved=
	rm -f "$log"
}
trap cleanup EXIT
trap 'exit 130' HUP INT TERM
deadline=$(($(date +%s) + lock))
# A file, not a pipe: a service that a package starts may keep it open.
locked() {
	while :; do
		# What shows progress ends when this file goes. The signal only makes it faster: one that comes right after the fork is lost.
		on=$(mktemp) || exit 1
		( last=
		while sleep 1 && [ -e "$on" ]; do
			now=$(tail -n 1 "$log")
			[ "$now" = "$last" ] || printf '\036\nP %s\n' "$now"
			last=$now
		done ) &
		watch=$!
		"$@" >"$log" 2>&1 </dev/null
		code=$?
		rm -f "$on"
		kill $watch 2>/dev/null
		wait $watch 2>/dev/null
		[ $code != 0 ] || return 0
		if ! grep -q -i -e 'could not get lock' -e 'unable to lock' -e 'unable to acquire' -e 'is locked by another process' -e 'was locked by another process' -e 'already locked by' -e 'holding the yum lock' "$log"; then return $code; fi
		if [ "$(date +%s)" -ge $deadline ]; then
			echo "another program holds the lock of the package manager, and still did after $lock s:" >&2
			grep -i -e lock "$log" | head -n 3 >&2
			exit 1
		fi
		sleep 1
	done
}
do_or_fail() {
	what=$1
	shift
	locked "$@" || { section failed; echo "$what"; cat "$log"; exit 1; }
}
if [ "$repair" = yes ]; then
	if grep -q '^# runbook: ' "$policy" 2>/dev/null; then rm -f "$policy"; fi
	if [ -e "$policy.runbook" ]; then mv -f "$policy.runbook" "$policy"; fi
fi
if [ "$nostart" = yes ] && [ "$use" = apt ]; then
	if [ -e "$policy" ] || [ -L "$policy" ]; then
		mv "$policy" "$policy.runbook" || exit 1
		saved=$policy.runbook
	fi
	ours=yes
	cat >"$policy" <<POLICY || exit 1
#!/bin/sh
# runbook: no service starts while process $$ installs packages; afterwards this file has no effect
kill -0 $$ 2>/dev/null && exit 101
if [ -x '$policy.runbook' ]; then exec '$policy.runbook' "\$@"; fi
exit 0
POLICY
	chmod 755 "$policy"
fi
if [ "$repair" = yes ]; then
	case $(ls "$admin/updates" 2>/dev/null) in [0-9]*) do_or_fail "finish the interrupted installation" dpkg --force-confdef --force-confold --configure -a ;; esac
fi
set -f
if [ "$use" = apt ]; then
	if [ "$refresh" = yes ]; then
		do_or_fail "fetch the package lists" apt-get -q update
		grep -e '^W: ' -e '^E: ' "$log" >"$log.w" && { section warnings; cat "$log.w"; }
		lists=
		eval "$(apt-config shell lists Dir::State::lists/d)"
		# Lists that did not change are as old as before, though they were looked at.
		if ! grep -q 'Failed to fetch\|Some index files' "$log.w"; then touch "$lists"; fi
		rm -f "$log.w"
	fi
	verb=install
	[ "$state" != absent ] || verb=remove
	[ "$count" = 0 ] || do_or_fail $verb apt-get -q -y $flags $verb -- "$@"
else
	quick=
	if [ "$use" = dnf ]; then quick=--setopt=exit_on_lock=True
	else
		while [ -e /var/run/yum.pid ] && kill -0 "$(cat /var/run/yum.pid)" 2>/dev/null; do
			if [ "$(date +%s)" -ge $deadline ]; then
				echo "another program holds the lock of the package manager, and still did after $lock s: process $(cat /var/run/yum.pid)" >&2
				exit 1
			fi
			sleep 1
		done
	fi
	if [ "$refresh" = yes ]; then do_or_fail "fetch the package lists" $use -q -y $quick $repos makecache; fi
	if [ "$state" = absent ]; then [ "$count" = 0 ] || do_or_fail remove $use -y $quick $repos $flags remove "$@"
	else
		install= upgrade=
		for p; do
			case $(versions "${p%%=*}") in
			'') install="$install $(echo "$p" | sed 's/=/-/')" ;;
			*) case $p in *=*) install="$install $(echo "$p" | sed 's/=/-/')" ;; *) upgrade="$upgrade $p" ;; esac ;;
			esac
		done
		[ -z "$install" ] || do_or_fail install $use -y $quick $repos $flags install $install
		[ -z "$upgrade" ] || do_or_fail upgrade $use -y $quick $repos $flags upgrade $upgrade
	fi
fi
set +f
`

const packageAfterScript = `section have
for p in "$@"; do
	for v in $(versions "${p%%=*}"); do printf '%s\t%s\n' "${p%%=*}" "$v"; done
done
exit 0
`

// Apply runs the transaction.
func (p *packages) Apply(ctx context.Context, host *module.Host, plan module.Plan) (module.Values, error) {
	do, _ := plan.State.(packagePlan)
	yes := map[bool]string{true: "yes", false: "no"}
	host.Progress(strings.Join(append([]string{p.State}, do.todo...), " "))
	script := strings.Replace(packageApplyScript, "shift 8\n", "shift 8\n"+p.chooseFlags(), 1) +
		"section changed\nprintf '%s\\n' " + quotedList(do.changed) + "\n" + packageAfterScript
	args := []string{do.manager, p.State, p.repos(), strconv.Itoa(int(p.LockTimeout.Seconds())), yes[do.refresh], yes[p.NoStart], yes[do.repair], strconv.Itoa(len(do.todo))}
	out, err := p.Runner(host)(ctx, hostScriptCmd(script, append(args, do.todo...)...))
	s := iptSections(string(out.Stdout))
	if err != nil {
		return nil, p.failed(err, do)
	}
	old, _ := plan.Values["versions"].(map[string]any)
	versions := maps.Clone(old)
	if p.State == "absent" {
		clear(versions)
	}
	maps.Copy(versions, packageVersions(s["have"]))
	// Where the transaction was begun by an earlier call, it knows better what changed.
	values := module.Values{"versions": versions, "packages": anyList(strings.Fields(s["changed"]))}
	if text := strings.TrimSpace(s["warnings"]); text != "" {
		values["warnings"] = anyList(strings.Split(text, "\n"))
	}
	return values, nil
}

// quotedList is a list as words of sh.
func quotedList(list []any) string {
	var words []string
	for _, w := range list {
		words = append(words, transport.Quote(fmt.Sprint(w)))
	}
	return strings.Join(words, " ")
}

// failed says why a transaction failed, from the output of the package manager.
func (p *packages) failed(err error, do packagePlan) error {
	var exit *transport.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	output, found := iptSections(string(exit.Output.Stdout))["failed"]
	if !found {
		return errors.New(strings.TrimSpace(string(exit.Output.Stderr)))
	}
	what, text, _ := strings.Cut(output, "\n")
	problem := tail(text, 15)
	if do.manager == "apt" {
		if p := aptProblem(text); !strings.HasPrefix(p, "apt-get: ") {
			problem = p
		}
	} else if p := dnfProblem(text); p != "" {
		problem = p
	}
	return fmt.Errorf("cannot %s: %s", what, problem)
}
