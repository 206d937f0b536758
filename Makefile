# Two commands do everything, set-up included, given python3 >= 3.11, a C compiler and make:
#
#   make demo    every variant of convolution on a photograph -> demo.png
#   make test    linters, type checker and the whole test suite
#
# All of it happens in .venv. The package is built into a wheel and installed from there, and rebuilt when a
# source file is newer; the checkout itself is never imported, because it lacks the compiled module.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find fastconv src -type f \( -name '*.py' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.toml' -o -name 'py.typed' \)) \
           setup.py pyproject.toml MANIFEST.in README.md LICENSE
WHEEL = $(firstword $(wildcard $(VENV)/wheel/*.whl))

# What `make demo` and `make test` hand on:  make demo DEMO_ARGS='mine.jpg --backend numba'
#                                            make test PYTEST_ARGS='-q -k deform --backend=cython'
#                                            make bench BENCH_ARGS='--quick --threads 1'
DEMO_ARGS ?=
PYTEST_ARGS ?= -q
BENCH_ARGS ?=

# Optional: what the suite and the benchmark compare with where it is installed (5 GB).
LIBRARIES := torch==2.14.1 torchvision==0.29.1 onnx onnxruntime
# expecttest is for torch's OpInfo database, scikit-learn has the digits of the training example, playwright clicks
# through the explorer's page where there is a Chromium.
PEERS := $(LIBRARIES) expecttest scikit-learn distributed playwright
# They compile the GPU kernels without a GPU: NVVM and ptxas. Registers depend on their versions, so docs/pages/cuda.md has
# them, and here they are fixed; torch brings the same CUDA.
CUDA_COMPILER := "numba-cuda[cu13]==0.30.4" "nvidia-cuda-nvcc==13.0.*"
# Of this only the OCR networks that it ships are used.
NETWORKS := rapidocr-onnxruntime
# What `make bench` compares with besides the libraries of the extra `bench`. Less:  make bench BENCH_PEERS=
BENCH_PEERS ?= $(LIBRARIES) jax

# The working directory stays off sys.path, in subprocesses too: only the installed package is imported.
export PYTHONSAFEPATH := 1

.PHONY: help demo test pytest lint format docs bench sanitize gpu peers wheel clean

help:
	@sed -n '3,4s/^#   //p' Makefile
	@echo "make lint    ruff and mypy;  make format  rewrite by ruff"
	@echo "make docs    the documentation, with the results of its code -> docs/site/index.html"
	@echo "make bench   time layers of known networks against other libraries -> bench-results/"
	@echo "make sanitize  random problems under the address sanitiser"
	@echo "make gpu     the tests that need an NVIDIA GPU, with PyTorch to compare with"
	@echo "make peers   install the libraries that some tests compare with"
	@echo "make wheel   sdist -> wheel -> clean install, checked"
	@echo "make clean   remove everything made"

demo: $(VENV)/extra-demo
	$(BIN)/python -m fastconv demo $(DEMO_ARGS)

test: lint pytest

pytest: $(VENV)/extra-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/extra-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/extra-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# It takes PyTorch's page with results where PyTorch is installed. The notice is of a successor to the theme.
docs: $(VENV)/extra-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet -f docs/mkdocs.yml

bench: $(VENV)/extra-bench
	$(if $(BENCH_PEERS),$(PIP) install -q $(BENCH_PEERS))
	$(BIN)/python -m fastconv bench $(BENCH_ARGS)

# The compiled module alone, built for the address and undefined-behaviour sanitisers of GCC, on random problems:
#                                            make sanitize SANITIZE_ARGS="--fuzz 2000 --op 'conv*'"
SANITIZE_ARGS ?= --fuzz 20000 --op 'deform*' --op 'dcn*'
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all
sanitize: $(VENV)/extra-test
	rm -rf build
	CC=gcc FASTCONV_CFLAGS="-O1 -g1 $(SANITIZERS)" FASTCONV_LDFLAGS="$(SANITIZERS)" $(PIP) install -q --no-deps --target build/sanitized .
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitized \
	  $(BIN)/python -m fastconv verify --backend cython $(SANITIZE_ARGS)

# numba-cuda brings no compiler of its own; that of CUDA 13 needs a driver of 580 or newer:  make gpu CUDA=cu12
CUDA ?= cu13
gpu: $(VENV)/extra-test $(VENV)/extra-cuda peers
	$(PIP) install -q "numba-cuda[$(CUDA)]"
	$(BIN)/python -m pytest -m gpu -p no:xdist -s $(PYTEST_ARGS) tests/test_gpu.py

peers: $(VENV)/ready
	$(PIP) install -q $(PEERS) $(CUDA_COMPILER)
	$(PIP) install -q --no-deps $(NETWORKS)

wheel: $(VENV)/ready
	rm -rf build dist
	$(PIP) install -q build
	$(BIN)/python -m build -o dist .
	$(PYTHON) -m venv build/check
	build/check/bin/python -m pip --disable-pip-version-check install -q dist/*.whl
	cd build && check/bin/python -m fastconv info && check/bin/python -m fastconv verify --quick

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks bench-results demo.png docs/site
	rm -f src/native.c fastconv/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fastconv needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# A left-over build folder would put files into the wheel that are no longer in the sources.
$(VENV)/installed: $(VENV)/ready $(SOURCES)
	rm -rf build $(VENV)/wheel
	$(PIP) wheel -q --no-deps -w $(VENV)/wheel .
	$(PIP) install -q --force-reinstall --no-deps $(VENV)/wheel/*.whl
	@touch $@

# The extras come after the package: installing its wheel again by name would be skipped, only they are added.
$(VENV)/extra-%: $(VENV)/installed
	$(PIP) install -q "$(WHEEL)[$*]"
	@touch $@
