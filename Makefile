# make demo: install and run the main job. make test: install and run the tests but the slow ones.
# make check: lint, types and all tests, as the continuous integration does.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
INSTALLED := $(VENV)/.installed

.PHONY: demo test check format

demo: $(INSTALLED)
	$(BIN)/python -m chanprune.train method=slimming model=vgg16 run.dir=outputs/demo

test: $(INSTALLED)
	$(PYTEST)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m ''

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"chanprune needs Python 3.11 or later; this is {v[0]}.{v[1]} (make PYTHON=python3.12 chooses another)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	touch $(INSTALLED)
