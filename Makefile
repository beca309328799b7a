# make demo | setup | check | test. Everything is installed into .venv, nothing globally.
#   demo    installs what the demo needs, draws a data set, trains, predicts, tabulates
#   setup   installs everything: also export, serving, linters and tests
#   check   runs the linters, the type checker and the check of the layers (tach.toml); test runs the tests; both do the set-up first
# Another Python than python3: make demo PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
# One file a level of installation, newer than its lists of packages once they are installed.
FOR_DEMO := .venv/.installed-for-demo
FOR_ALL := .venv/.installed

.PHONY: setup check test demo

setup: $(FOR_ALL)

$(FOR_DEMO): requirements.txt requirements-demo.txt
	@echo "The demo's packages are installed into .venv first, once. To fetch: on Linux about 3.1 GB, of which 2.9 GB"
	@echo "are PyTorch with its GPU libraries; on macOS and Windows about 0.3 GB. On disk: 5.8 GB, elsewhere 1 GB."
	@echo "At 20 MB/s it takes about 5 minutes on Linux. After an interruption, the same command goes on."
	$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed: make demo PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --progress-bar on -r requirements-demo.txt
	touch $@

$(FOR_ALL): $(FOR_DEMO) $(wildcard requirements*.txt)
	@echo "All packages are installed into .venv: after the demo's another 0.3 GB to fetch, and 1 GB of disk."
	$(BIN)/pip install --disable-pip-version-check --progress-bar on -r requirements-dev.txt
	touch $(FOR_DEMO) $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/tach check

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0

demo: $(FOR_DEMO)
	$(BIN)/python dataset_tools.py demo recipes/demo.py
	$(BIN)/python training.py recipes/demo.py
	$(BIN)/python testing.py recipes/demo.py
	$(BIN)/python model_performance_table.py recipes/demo.py
