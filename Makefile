# Eight targets. Each but bench-gpu makes .venv from requirements-dev.txt first, when it is missing or out of date.
#   make demo         the three stages on the embedded model, into demo/
#   make test         every test that needs neither a GPU, nor ComfyUI, nor a browser
#   make test-web     every workflow in the front end, in chromium; and what the registry would take
#   make check        format, lint, spelling, types and the fast tests: green before each commit
#   make train-tiny   a few steps of the whole training, some minutes, into runs/tiny;
#                     FORM=full trains the embedded models, for hours
#   make bench        print the tables of the benchmarks, one after the other
#   make bench-gpu    what needs a GPU, 34 minutes, into benchmarks/results; with PYTHON as it is
#   make format       rewrite the sources in the house format
#
# torch from PyPI is the CUDA build. On a machine without a GPU the smaller CPU build will do:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/requirements.stamp
FORM := short
CPU_TESTS := not gpu and not host and not web
# Named, as every process of pytest's reads each file that it is given.
WEB_TESTS := tests/web tests/test_publishing.py
# A file's tests share fixtures, so they stay in one process. tests/conftest.py orders the files.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-web check bench bench-gpu format train-tiny

demo: $(STAMP)
	@echo "All stages on the embedded models, four prompts: about a minute on two idle cores."
	$(BIN)/python -m surf_core.tiny --out demo

test: $(STAMP)
	@echo "About 6000 tests, three to five minutes on two idle cores; each dot is one that passed."
	$(PYTEST) -m "$(CPU_TESTS)"

test-web: $(STAMP)
	@echo "Every workflow in headless Chromium, then the registry's command: one to two minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/web/requirements.txt
	$(BIN)/pytest -n auto --maxprocesses 3 --dist loadscope -m web $(WEB_TESTS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(PYTEST) -m "$(CPU_TESTS) and not slow"

train-tiny: $(STAMP)
	$(BIN)/python -m surf_core.training.tiny --form $(FORM) --out runs/tiny

bench: $(STAMP)
	@for script in $$(grep -l '^if __name__' benchmarks/*/*.py); do \
		$(BIN)/python -m "$$(echo "$${script%.py}" | tr / .)" || failed=1; \
	done; exit $${failed:-0}

# The GPU's torch and the host's packages are those of PYTHON: nothing is installed.
bench-gpu:
	@for part in flow-720p flow-1080p hunyuan cards kernels extras; do \
		$(PYTHON) -m benchmarks.on_gpu $$part || failed=1; \
	done; exit $${failed:-0}

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch goes first and alone, so that no other requirement can pull a newer one.
$(STAMP): requirements-dev.txt
	@echo "Installing requirements-dev.txt into .venv, once: some minutes, most of them for torch."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check \
		"$$(grep '^torch==' requirements-dev.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $(STAMP)
