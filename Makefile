# Assent. `make help` lists what there is; `make test` is what must pass.

GO       ?= go
SEEDS    ?= 20000
CLUSTERS ?= 10000
FUZZTIME ?= 60s
ROUNDS   ?= 20
MINUTES  ?= 10
KILLS    ?= 100
HISTORY_SECONDS ?= 60
SESSIONS ?= 5000
MUTANTS  ?=
BENCH    ?= .

# The linters are pinned here, and not in go.mod, so that users of the module do
# not carry them.
GOLANGCI = $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# Go files under version control or about to be; generated ones are formatted too.
GOFILES = $(shell find . -name '*.go' -not -path './.*/*' -not -path '*/testdata/*')

.DEFAULT_GOAL := help
.PHONY: help deps build test lint fmt fuzz sim mutants kill kill-postgres chaos failover history bench proto demo

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make sim SEEDS=$(SEEDS) CLUSTERS=$(CLUSTERS)   make fuzz FUZZTIME=$(FUZZTIME)   make kill ROUNDS=$(ROUNDS)   make mutants MUTANTS='name name'"

deps: ## install what the tests need and this machine lacks (a C compiler for the race detector, PostgreSQL)
	@scripts/install-test-deps.sh

build: ## bin/assent, static
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/assent ./cmd/assent

# Cheapest first. The tests hold a bounded share of everything below: simulated
# seeds, the corpora of the fuzz targets, one round of kills, and at the end every
# planted bug.
test: deps ## everything that must pass, in under 25 minutes on two cores
	$(GO) vet ./...
	$(GO) vet -tags mutants,failpoints ./...
	@unformatted="$$(gofmt -l $(GOFILES))"; test -z "$$unformatted" || { echo "gofmt -w is needed for:" $$unformatted; exit 1; }
	$(GO) test ./internal/arch
	$(GO) test -race -timeout 20m ./...
	$(GO) test -tags previouslevel -run PreviousLevel ./internal/txn ./internal/shard
	scripts/mutants.sh $(MUTANTS)

lint: ## golangci-lint, and the API definition against its generated files
	$(GOLANGCI) run ./...
	scripts/proto.sh --check

fmt: ## format as `make lint` wants it
	$(GOLANGCI) fmt ./...

sim: ## SEEDS simulated coordinators and CLUSTERS simulated clusters; a failing seed prints how to run it alone
	$(GO) test ./internal/sim -count=1 -timeout 0 -v -run TestSeeds -seeds $(SEEDS)
	$(GO) test ./internal/sim/cluster -count=1 -timeout 0 -v -run TestSeeds -seeds $(CLUSTERS)

fuzz: ## every fuzz target for FUZZTIME
	@set -e; for dir in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		for target in $$(grep -rhoE '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -c6-); do \
			echo "== $$dir $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$dir; \
		done; \
	done

mutants: ## plant every known bug (or MUTANTS), one at a time: some test must fail for each
	scripts/mutants.sh $(MUTANTS)

kill: ## ROUNDS of SIGKILL at every named point under load, with an audit after each
	$(GO) test ./internal/e2e -count=1 -timeout 0 -v -run Kill -kill.rounds $(ROUNDS)

history: ## HISTORY_SECONDS of killing while clients append and read, and what they were told is checked; SESSIONS seeds of the same in simulation
	$(GO) test ./internal/sim/sessions -count=1 -timeout 0 -v -run 'TestSessions$$' -seeds $(SESSIONS)
	$(GO) test ./internal/e2e -count=1 -timeout 0 -v -run TestHistories -history.seconds $(HISTORY_SECONDS)

kill-postgres: ## MINUTES of killing coordinator, servers, agents and service while money moves between two databases
	$(GO) test ./internal/e2e -count=1 -timeout 0 -v -run KillPostgres -kill.minutes $(MINUTES)

chaos: ## MINUTES of breaking nodes, networks, services and databases of a cluster at random, with an audit every 90 s; CHAOS_SEED repeats an order of faults
	$(GO) test ./internal/e2e -count=1 -timeout 0 -v -run 'TestChaos$$' -chaos.minutes $(MINUTES) -chaos.seed $(or $(CHAOS_SEED),0)

failover: ## KILLS of leaders under load: how long nothing commits
	$(GO) test ./internal/e2e -count=1 -timeout 0 -v -run 'TestFailoverGap$$' -failover.kills $(KILLS)

bench: ## benchmarks matching BENCH, then the coordinator as a whole; docs/PERFORMANCE.md says what to expect
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -benchtime 300ms ./...
	$(GO) run ./cmd/assent bench --suite

proto: ## generate Go code and api/openapi.json from the proto files
	scripts/proto.sh

demo: ## a coordinator that is killed again and again, two ledgers, an audit
	$(GO) run ./cmd/assent demo
