# The commands of this project. Each installs what it needs under .venv; nothing outside this folder is touched.
#
#   make run        examples/char_lm.py: train a character-level language model and write text with it
#   make test       the test suite                 (make test ARGS="-m slow", make test ARGS=tests/test_gradients.py)
#   make lint       every static check
#   make sanitize   the test suite under AddressSanitizer and UBSan (Linux, gcc)
#   make tiles      the C kernels alone against scalar loops (make tiles CC=clang)
#   make neon       the same for 64-bit ARM: cross-compiled by CROSS, run by EMULATOR, statically linked
#                   (Debian: apt-get install gcc-aarch64-linux-gnu qemu-user)
#   make bench      the benchmarks, a quarter of an hour, results in RESULTS (make bench ARGS="-k lstm")
#   make bench-compare   what got slower in RESULTS since BASE (default: the newest in benchmarks/results)
#   make bench-paired    this tree beside commit BASE (default: HEAD^), both built and timed in one run
#   make bench-peers     the speed beside PyTorch, ONNX Runtime, JAX and others, results in PEERS
#   make bench-report    tables and pictures of RESULTS and PEERS, into docs/performance.md and README.md
#   make docs       the documentation as HTML, in docs/_build
#   make dist       sdist and wheel, in dist
#   make clean      remove all that the above have made, but for results of benchmarks
#
# PYTHON is the interpreter (3.11 or later) that .venv is made from; CC, when set, compiles the extension.

PYTHON ?= python3
ARGS ?=
VENV := .venv
SAN := .venv-sanitize
BIN := $(VENV)/bin
CROSS ?= aarch64-linux-gnu-gcc
EMULATOR ?= qemu-aarch64
TILES := tests/tiles_check.c kernels/cpu.c $(wildcard kernels/isa/*.c)
TILES_FLAGS := -O3 -std=gnu11 -ffp-contract=off -Wall -Wextra -Werror -Ikernels
RESULTS ?= .benchmarks/bench.json
PEERS ?= .benchmarks/peers.json
BUILD_INPUTS := pyproject.toml setup.py $(shell find kernels -type f)

.PHONY: run test lint sanitize tiles neon bench bench-compare bench-paired bench-peers bench-report docs dist clean
.NOTPARALLEL:
.SECONDEXPANSION:

run: $(VENV)/.package $(VENV)/.group-run
	$(BIN)/python examples/char_lm.py $(ARGS)

test: $(VENV)/.package $(VENV)/.group-test
	$(BIN)/python -m pytest $(ARGS)

# cython-lint looks for pycodestyle on the PATH; stubtest holds _core.pyi against the compiled module itself.
lint: $(VENV)/.package $(VENV)/.group-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint kernels
	find kernels tests -name '*.[ch]' | sort | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fusedrnn._core --mypy-config-file pyproject.toml
	find src -name '*.py' | sort | xargs $(BIN)/numpydoc lint
	$(BIN)/codespell
	$(BIN)/sp-repo-review .

# detect_leaks=0: CPython keeps memory until the very end on purpose. capture=sys: a report must outlive the process.
# libstdc++: AddressSanitizer looks for its `throw` at the start, and extensions of other packages bring it later.
# Without Numba, whose code is not instrumented and which takes hours to compile it here: a quarter of an hour.
sanitize: $(SAN)/.package $(SAN)/.group-test
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	$(SAN)/bin/python -m pytest --capture=sys -k "not numba and not bench" $(ARGS)

# Compiled anew each time: seconds, and no list of headers to keep.
tiles:
	mkdir -p build
	$(CC) $(TILES_FLAGS) $(TILES) -lm -o build/tiles_check
	build/tiles_check

neon:
	mkdir -p build
	$(CROSS) $(TILES_FLAGS) -static $(TILES) -lm -o build/tiles_check_neon
	$(EMULATOR) build/tiles_check_neon

bench: $(VENV)/.package $(VENV)/.group-bench
	mkdir -p $(dir $(RESULTS))
	$(BIN)/python -m pytest benchmarks --quiet --benchmark-json=$(RESULTS) --benchmark-sort=name \
		--benchmark-columns=min,median,iqr,rounds $(ARGS)

bench-compare: BASE ?= $(lastword $(sort $(wildcard benchmarks/results/bench-*.json)))
bench-compare: $(VENV)/.package
	$(BIN)/python benchmarks/compare.py $(BASE) $(RESULTS)

bench-paired: BASE ?= HEAD^
bench-paired: $(VENV)/.package
	rm -rf build/base build/base-source
	mkdir -p build/base-source
	git archive $(BASE) | tar -x -C build/base-source
	$(BIN)/python -m pip install --quiet --no-deps --target build/base build/base-source
	$(BIN)/python benchmarks/paired.py build/base src

bench-peers: $(VENV)/.package $(VENV)/.group-peers
	$(BIN)/python benchmarks/peers.py --json $(PEERS) $(ARGS)

bench-report: $(VENV)/.package $(VENV)/.group-bench
	$(BIN)/python benchmarks/report.py $(RESULTS) $(PEERS)

docs: $(VENV)/.package $(VENV)/.group-docs
	$(BIN)/python -m sphinx --fail-on-warning docs docs/_build $(ARGS)

dist: $(VENV)/.group-test
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) $(SAN) build dist docs/_build out src/fusedrnn.egg-info src/fusedrnn/_core.*.so

# The virtual environments. A .name in one is a stamp: made anew when what it was made from changes.

# Debian's python3 has no ensurepip until python3-venv is installed; its pip can fill the environment all the same.
# pip 25.1 is the first that knows dependency groups.
$(VENV)/.pip $(SAN)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(@D) || { $(PYTHON) -m venv --clear --without-pip $(@D) && $(PYTHON) -m pip --python $(@D)/bin/python install pip; }
	$(@D)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	touch $@

# Editable: a change of a Python file needs no second installation.
$(VENV)/.package: $(BUILD_INPUTS) | $(VENV)/.pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# Not editable: the instrumented module must not lie in src, where the other interpreters would find it. setuptools
# would install a module that it finds in build and that has long gone from src.
$(SAN)/.package: $(BUILD_INPUTS) $(shell find src -name '*.py*') | $(SAN)/.pip
	rm -rf build
	CC=gcc FUSEDRNN_BUILD=sanitize $(SAN)/bin/python -m pip install --quiet .
	touch $@

$(addprefix $(VENV)/.group-,run test lint bench peers docs) $(SAN)/.group-test: pyproject.toml | $$(@D)/.pip
	$(@D)/bin/python -m pip install --quiet --group $(patsubst .group-%,%,$(@F))
	touch $@
