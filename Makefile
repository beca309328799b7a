# make setup | check | test | demo: each does the set-up it needs, in .venv, nothing global.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup check test demo

setup: $(STAMP)

$(STAMP): $(wildcard requirements*.txt)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0

demo: setup
	$(BIN)/python dataset_tools.py demo recipes/demo.py
	$(BIN)/python training.py recipes/demo.py
	$(BIN)/python testing.py recipes/demo.py
	$(BIN)/python model_performance_table.py recipes/demo.py
