# Everything runs from a fresh clone: `make test` and `make demo` first set up .venv from requirements.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/requirements.stamp
# make test BEAM=1 also installs Apache Beam and tests the pipeline that needs it; without it those tests are skipped.
BEAM_STAMP := $(if $(BEAM),$(VENV)/requirements-beam.stamp)
# The versions that CI tests with, where this Python has a list of them (requirements/constraints-3.11.txt).
CONSTRAINTS = $(wildcard requirements/constraints-$(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])").txt)
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS))

.PHONY: help setup test demo live lint clean

help:
	@echo "make test    set up .venv and run the tests"
	@echo "make demo    set up .venv and run the demonstration from simulated logs to recommendations"
	@echo "make live    the simulated platform against the live service, in accelerated time (runs make demo first if need be)"
	@echo "make test BEAM=1    the same with Apache Beam installed and its pipeline tested"
	@echo "make lint    set up .venv and check style and imports"
	@echo "make clean   remove .venv and every cache"
	@echo "PYTHON=/path/to/python3 picks another interpreter (3.11 or newer; run make clean first)"

setup: $(STAMP)

# The stamp is written last, so a broken installation is tried again.
$(STAMP): requirements.txt $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "OneLive-JAX needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
		     "Name another one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/requirements-beam.stamp: $(STAMP)
	$(PIP) -r requirements.txt -r requirements/beam.txt
	@touch $@

test: $(STAMP) $(BEAM_STAMP)
	$(BIN)/python -m pytest tests

demo: $(STAMP)
	$(BIN)/python -m experiments.demo

$(VENV)/requirements-serve.stamp: $(STAMP)
	$(PIP) -r requirements.txt -r requirements/serve.txt
	@touch $@

runs/demo/supervised.json:
	$(MAKE) demo

live: $(VENV)/requirements-serve.stamp runs/demo/supervised.json
	$(BIN)/python -m experiments.live_platform --workdir=runs/demo --minutes=10

lint: $(STAMP)
	$(BIN)/python -m ruff check .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
