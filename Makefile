# Set-up, checks and tests. `make quickstart` trains a small model on a CPU; `make test` runs all that CI runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

# A machine with a working NVIDIA driver gets the CUDA build of vLLM, any other the CPU build.
EXTRA := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
STAMP := $(VENV)/.installed-$(EXTRA)

# PyTorch marks its CPU builds for Linux with +cpu; asking for one by name never pulls the CUDA packages.
TORCH_LOCAL := $(if $(filter cpu,$(EXTRA)),$(if $(filter Linux,$(shell uname -s)),+cpu))

# Tests run offline, and one thread an actor is faster than many actors with many threads each.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest
# Two processes, as CI has two cores. A file stays in one of them: its tests share engines, and some go on from others.
PARALLEL := -n 2 --dist loadfile
CHECKED := $(wildcard gvm_ray tests examples)

.PHONY: quickstart test unit check bench-tests faults soak format install flash-attn clean

quickstart: $(STAMP)
	$(BIN)/gvm-ray train configs/quickstart.toml --overwrite

# What needs no cluster comes first, and side by side. What needs one has both cores: its actors are many processes.
test: check
	$(PYTEST) $(PARALLEL) tests/unit tests/contract tests/faults -m "not slow and not ray"
	$(PYTEST) tests/faults -m "ray and not slow"
	$(PYTEST) tests/ray -m "not slow"
	$(PYTEST) tests/vllm -m "not slow"
	$(if $(filter gpu,$(EXTRA)),$(if $(wildcard tests/gpu),$(PYTEST) tests/gpu))

unit: $(STAMP)
	$(PYTEST) $(PARALLEL) tests/unit

# Times of the parts, told by pytest-benchmark; no part of `make test`, for nothing depends on how long they take.
bench-tests: $(STAMP)
	$(PYTEST) tests/benchmarks

# What dies, hangs or is nonsense, with the tests that take minutes.
faults: $(STAMP)
	$(PYTEST) tests/faults
	$(PYTEST) tests/ray tests/vllm -m slow

# An hour of random kills beside the same run undisturbed; no part of `make test`.
soak: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m tests.faults.soak --minutes 60 --seed 0

check: $(STAMP)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-logo
	$(PYTEST) tests/unit/test_sizes.py

format: $(STAMP)
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

install: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; run e.g. make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/pip install --quiet torch==$(TORCH_VERSION)$(TORCH_LOCAL) || \
		{ echo "pip can't install torch $(TORCH_VERSION)$(TORCH_LOCAL); README.md, Installation, says how to point" \
		"pip at PyTorch's builds"; exit 1; }
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRA),dev]'
ifeq ($(EXTRA),cpu)
	# vLLM's CPU build pulls in these CUDA builds, beside which importing vLLM fails; it needs none of them.
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
endif
	@rm -f $(VENV)/.installed-*
	@touch $@

# Compiles against the installed torch and needs the CUDA toolkit; without it attention runs on SDPA.
flash-attn: $(STAMP)
	$(BIN)/pip install --no-build-isolation -c constraints.txt -e '.[$(EXTRA),flash-attn]'

clean:
	rm -rf $(VENV) build dist *.egg-info .ruff_cache .import_linter_cache .hypothesis
