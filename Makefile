# Each target is complete by itself: it makes the environment if need be, then does its work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes, each of which takes whole files, for what is made once for a file serves all its tests.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
READY := $(VENV)/ready

.PHONY: demo test check docs bench release-check clean

demo: $(READY)
	$(BIN)/wsi-ats demo --out demo

test: $(READY)
	$(PYTEST)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

# Every warning is an error; the page to open is build/docs/index.html.
docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/docs

bench: $(READY)
	$(BIN)/python -m benchmarks.designs

release-check: $(READY)
	$(BIN)/python -m tools.release

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "wsi_ats needs Python 3.11 or later; set PYTHON=... to one"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
		--constraints constraints.txt --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info
