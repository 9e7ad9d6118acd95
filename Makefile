# Two commands do all the set-up: `make demo` and `make test`. Both need Python 3.11, 3.12 or 3.13 and make, nothing else.
PYTHON ?= $(notdir $(firstword $(foreach one,3.11 3.12 3.13,$(shell command -v python$(one))) python3.11))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast test-data check campaign audit hashes clean

demo: $(READY)
	$(BIN)/mammo demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder

# What a change is tried with first, in less than three minutes; CONTRIBUTING.md says what it leaves out.
LEFT_OUT := campaigns data_prep/parallel $(addprefix pipeline/,classification cli evaluation inference pretraining reporting runtime training \
	test_age.py test_external.py test_external_killed.py)
test-fast: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder -m "not slow" \
		$(LEFT_OUT:%=--ignore=tests/%)

# data_prep's tests under another Python (PYTHON=python3.13), which needs no torch and so no gigabytes.
PINS := grep -vE "^(\#|torch|torchvision|timm|albumentations|albucore)" constraints.txt
test-data:
	set -e; other=.venv-$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	test -x $$other/bin/python || $(PYTHON) -m venv $$other; \
	$(PINS) | $$other/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r /dev/stdin; \
	$$other/bin/python -m pip check; \
	$$other/bin/python -m pytest -n auto --dist loadscope --no-loadscope-reorder -m "not slow" tests/data_prep

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	for version in 3.11 3.12 3.13; do $(BIN)/mypy --python-version $$version || exit 1; done
	$(BIN)/shellcheck .ci/run configs/cluster/*.sbatch
	$(BIN)/yamllint --strict --config-data '{extends: relaxed, rules: {line-length: {max: 110}}}' configs/cluster .github/workflows
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml data_prep pipeline

# The long tests: hours. MAMMO_REAL_DATA adds real files to the fuzzing; the findings' files lie in FINDINGS.
FINDINGS ?= /tmp/mammo-findings
campaign: $(READY)
	$(BIN)/python -m tests.campaigns.fuzz --executions 200000 --out $(FINDINGS)
	$(BIN)/python -m tests.campaigns.kills --kills 100
	$(BIN)/python -m tests.campaigns.stops --stops 30
	$(BIN)/python -m tests.campaigns.load --images 20000
	$(BIN)/python -m tests.campaigns.figures --runs 800
	$(BIN)/python -m tests.campaigns.repeats --runs 800
	$(BIN)/python -m tests.campaigns.operating_rules --runs 200

# Known weaknesses of the pinned versions, from PyPI's advisories: needs a network.
audit:
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.audit/bin/pip-audit --disable-pip --no-deps -r constraints-hashed.txt

hashes: $(READY)
	$(BIN)/python .ci/hash_constraints.py

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-* .audit .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
