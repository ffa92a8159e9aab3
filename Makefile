# Everything from nothing: needs python3.11 (or PYTHON=...), a C++20 compiler, make, and pip's access to an index.
#
#   make demo    train the same layer twice, unrolled and through this package, and compare
#   make test    wheel in a new environment, no compiler, tests from outside the tree; the wheel under another torch and
#                with another Triton
#   make test-thorough   every planned Triton kernel compiled for every architecture by both Tritons, after make test
#   make test-cuda-build   the wheel under a CUDA build of torch, no device needed; 3 GB of downloads, after make test
#   make bench   measure against the baselines; writes benchmarks/results/
#   make lint    ruff, mypy, clang-format, typos
#   make wheel   dist/*.whl
#   make build   compiled parts beside the sources, for work on them (. .venv-dev/bin/activate)

PYTHON ?= python3.11
TORCH ?= 2.13.0
OTHER_TORCH ?= 2.11.0
OTHER_TRITON ?= 3.6.0

DEV := .venv-dev
TEST := .venv-test
USER := .venv-user
OTHER := .venv-torch-$(OTHER_TORCH)
TRITON := $(DEV)/triton-$(OTHER_TRITON)
WITH_CUDA := .venv-torch-$(OTHER_TORCH)-cuda
PIP_INSTALL := -m pip install -q --disable-pip-version-check
CPP_FILES = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test test-thorough test-cuda-build bench lint wheel build install clean
.DELETE_ON_ERROR:

$(DEV)/ready: pyproject.toml tools/requirements.py Makefile
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python $(PIP_INSTALL) torch==$(TORCH)
	$(DEV)/bin/python tools/requirements.py build dev > $(DEV)/requirements.txt
	$(DEV)/bin/python $(PIP_INSTALL) -r $(DEV)/requirements.txt
	touch $@

build: $(DEV)/ready
	$(DEV)/bin/python setup.py -q build_ext --inplace

wheel: $(DEV)/ready
	rm -rf dist build/lib* build/bdist* build/wheel
	$(DEV)/bin/python -m pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	PATH="$(CURDIR)/$(DEV)/bin:$$PATH" auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' -w dist build/wheel/*.whl
	$(DEV)/bin/auditwheel show dist/*.whl

lint: $(DEV)/ready
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy
	$(DEV)/bin/clang-format --dry-run -Werror $(CPP_FILES)
	$(DEV)/bin/typos

# The C++ tests compile with sanitizers, so they run here; the rest runs where there is no compiler. pytest's own
# line of the main run comes last.
test: wheel $(OTHER)/ready $(TRITON)/ready
	$(DEV)/bin/python -m pytest -q -n auto --dist worksteal tests/cpp
	$(OTHER)/bin/python $(PIP_INSTALL) --no-deps --force-reinstall dist/*.whl
	tools/test_installed.sh $(OTHER) -q tests/packaging
	rm -rf $(TEST)
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/python $(PIP_INSTALL) torch==$(TORCH)
	$(TEST)/bin/python $(PIP_INSTALL) "$$(echo $(CURDIR)/dist/*.whl)[test]"
	tools/test_installed.sh --with-compiler $(TEST) -q tests
	tools/test_installed.sh --before $(TRITON) $(TEST) -q --triton $(OTHER_TRITON) \
	  'tests/backends/triton/test_triton.py::test_in_a_process_of_its_own[ahead_of_time]'
	@tools/test_installed.sh $(TEST) --doctest-modules --pyargs attractor_kernels tests

# After `make test`, in the environment it leaves.
test-thorough: $(TRITON)/ready
	tools/test_installed.sh --thorough $(TEST) -q tests/backends/triton
	tools/test_installed.sh --thorough --before $(TRITON) $(TEST) -q --triton $(OTHER_TRITON) tests/backends/triton

# Without the environment that it is used in, which `make test` makes anew.
$(TRITON)/ready: $(DEV)/ready
	$(DEV)/bin/python $(PIP_INSTALL) --no-deps --upgrade --target $(TRITON) triton==$(OTHER_TRITON)
	touch $@

$(WITH_CUDA)/ready:
	$(PYTHON) -m venv $(WITH_CUDA)
	$(WITH_CUDA)/bin/python $(PIP_INSTALL) torch==$(OTHER_TORCH) numpy hypothesis pytest pyelftools
	touch $@

test-cuda-build: $(WITH_CUDA)/ready
	$(WITH_CUDA)/bin/python $(PIP_INSTALL) --no-deps --force-reinstall dist/*.whl
	tools/test_installed.sh $(WITH_CUDA) -q tests/packaging/test_library.py

$(OTHER)/ready: $(DEV)/ready tools/install_torch_without_cuda.py
	rm -rf $(OTHER)
	$(PYTHON) -m venv $(OTHER)
	$(DEV)/bin/python tools/install_torch_without_cuda.py $(OTHER) $(OTHER_TORCH)
	$(OTHER)/bin/python $(PIP_INSTALL) numpy hypothesis pytest pyelftools
	touch $@

$(USER)/ready: pyproject.toml tools/requirements.py Makefile
	$(PYTHON) -m venv $(USER)
	$(USER)/bin/python $(PIP_INSTALL) torch==$(TORCH)
	$(USER)/bin/python tools/requirements.py build demo > $(USER)/requirements.txt
	$(USER)/bin/python $(PIP_INSTALL) -r $(USER)/requirements.txt
	touch $@

# The demonstration and the benchmark run on the CPU; CUDA kernels, where nvcc is found, would take minutes to compile.
install: $(USER)/ready
	rm -rf build/lib* build/bdist* build/wheel
	FORCE_CUDA=$${FORCE_CUDA:-0} $(USER)/bin/python -m pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	$(USER)/bin/python $(PIP_INSTALL) --no-deps --force-reinstall build/wheel/*.whl

demo: install
	$(USER)/bin/attractor-kernels demo

bench: install
	$(USER)/bin/python tools/requirements.py bench > $(USER)/requirements.txt
	$(USER)/bin/python $(PIP_INSTALL) -r $(USER)/requirements.txt
	$(USER)/bin/attractor-kernels bench

clean:
	rm -rf build dist .venv-dev .venv-test .venv-user .venv-torch-* attractor_kernels/*.so
