# Each target does its own set-up: a virtual environment in .venv, PyTorch, this package. See README.md.
#
#   PYTHON       the interpreter that makes .venv            make test PYTHON=python3.12
#   TORCH_INDEX  where to look for CPU-only PyTorch wheels   make test TORCH_INDEX=<URL>
#   ARGS         more arguments for the demo or for pytest   make test ARGS="-k flows -x"

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
# Tools are run as modules: the scripts in .venv/bin keep the path of the checkout that they were installed in.
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 10))
TYPED := $(sort $(dir $(wildcard sb3_swfp/*.py examples/*.py benchmarks/*.py)))

# The stamp names the checkout, since an editable install points at it: a copied or moved one is installed again.
CURRENT := $(shell [ "$$(cat $(STAMP) 2>/dev/null)" = "$(CURDIR)" ] && $(RUN) -c '$(SUPPORTED)' 2>/dev/null && echo yes)

.DEFAULT_GOAL := help
.PHONY: help demo test lint type format clean FORCE

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

demo: $(STAMP) ## collect demonstrations on a robot task, clone them, fine-tune the clone online
	$(RUN) examples/demo.py $(ARGS)

test: export OMP_NUM_THREADS = 1
test: $(STAMP) ## run the tests
	$(RUN) -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(STAMP) ## check style and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

type: $(STAMP) ## check types
	$(RUN) -m mypy $(TYPED)

format: $(STAMP) ## fix style and format where that can be done automatically
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean: ## remove the virtual environment, build outputs and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): setup.py pyproject.toml constraints.txt sb3_swfp/version.txt $(if $(CURRENT),,FORCE)
	@if ! $(RUN) -c '$(SUPPORTED)' 2>/dev/null || ! $(RUN) -m pip --version >/dev/null 2>&1; then \
		command -v "$(PYTHON)" >/dev/null || \
			{ echo "'$(PYTHON)' was not found. Install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }; \
		"$(PYTHON)" -c '$(SUPPORTED)' || \
			{ echo "sb3_swfp needs Python 3.10 or newer, '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Name a newer one: make PYTHON=python3.12" >&2; exit 1; }; \
		"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
			{ echo "'$(PYTHON)' cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
		"$(PYTHON)" -m venv --clear $(VENV); \
	fi
	$(RUN) -m pip install torch -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(RUN) -m pip install -e ".[dev]" -c constraints.txt
	@printf '%s\n' "$(CURDIR)" > $@
