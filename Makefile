PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/installed            ## simulate a head, reconstruct it, compare with the truth
	$(BIN)/chimap demo --output demo

test: .venv/installed-for-tests  ## everything that has to hold, in minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/pytest

clean:
	rm -rf .venv demo

.venv/bin/pip:
	$(PYTHON) -m venv .venv

# An editable install: edit, run again, nothing to reinstall unless the dependencies change.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-for-tests: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ .venv/installed
