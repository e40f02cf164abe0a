# Each line of a recipe is one command, and make stops at the first that fails.

.PHONY: build check test chaos bench doc demo demo-down programs deps go

build: go
	CGO_ENABLED=0 go build -trimpath -o bin/runbook ./cmd/runbook

# The source alone: form, vet, staticcheck.
check: go
	@echo gofmt -l .; unformatted=$$(gofmt -l .) && if [ -n "$$unformatted" ]; then echo "not in gofmt's form:" $$unformatted; exit 1; fi
	go vet ./...
	go tool staticcheck ./...

# Everything: the source, and all tests, on real hosts too where root and systemd-nspawn allow. Says what it skipped and why.
test: deps check
	go run ./acceptance/gotest -race -count=1 -timeout=60m ./...

# Hours: the controller killed 200 times at random during the set-up of a fresh pair, and at each write of its record; 40 faults of hosts
# and links there; connections cut after 1 B to 64 MiB in every way; 20 controllers stopped for ten minutes; dumps cut at 1,000 places,
# and transfers at 30. Each is followed by one resume. The variables say how often, RUNBOOK_CHAOS_SEED which moments.
chaos: deps
	RUNBOOK_NO_SKIP=1 RUNBOOK_CHAOS=$${RUNBOOK_CHAOS:-200} RUNBOOK_POINTS=$${RUNBOOK_POINTS:-all} RUNBOOK_FAULTS=$${RUNBOOK_FAULTS:-40} RUNBOOK_LINKS=$${RUNBOOK_LINKS:-all} RUNBOOK_CLOCK=$${RUNBOOK_CLOCK:-20} RUNBOOK_DUMP_CUTS=$${RUNBOOK_DUMP_CUTS:-1000} RUNBOOK_TRANSFER_CUTS=$${RUNBOOK_TRANSFER_CUTS:-30} go test ./acceptance -run '^(TestChaos|TestFaults|TestLinkCuts|TestStopped|TestDumpCuts|TestTransferCuts)$$' -count=1 -v -timeout=24h

bench: go
	go test -run='^$$' -bench=. -benchmem ./...

# The reference pages, from the source.
doc: go
	go run ./cmd/runbook docs docs

# MAN06 on hosts of this machine, from nothing to a replication and a VOMS pair that outlives its first server.
demo: deps programs
	bin/demo

demo-down: programs
	bin/demo down

programs: build
	CGO_ENABLED=0 go build -o bin/ ./acceptance/demo ./acceptance/lab/labctl

deps: go
	acceptance/lab/deps.sh

go:
	@command -v go >/dev/null || { echo "Go is not installed. runbook needs Go 1.26 or newer, which Debian 12 does not have: see https://go.dev/doc/install"; exit 1; }
