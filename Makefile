# make demo, make test: each makes what it needs first, an environment and a build, and only when missing or stale.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_CUDA ?= torch==2.14.1
# Of the machine with the GPU, for which gpu-kit compiles: Python's minor version and torch must be its own. It happens
# to be the oldest torch that is supported, so test-oldest takes the same environment.
GPU_TORCH ?= torch==2.11.0
GPU_PYTHON ?= $(lastword python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python))
GPU_ARCH ?= 9.0
# What depends on torch most: its modules, compiler, exporter, transforms and the build.
OLDEST_TESTS ?= $(addprefix tests/test_,$(addsuffix .py,module compile export transforms build import tools autocast double_backward))
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
PEERS_ARGS ?=

BUILD_NEEDS := "setuptools>=77" ninja
DEMO_NEEDS := numpy statsmodels matplotlib tqdm
TEST_NEEDS := numpy pytest matplotlib rich tqdm
GPU_TEST_NEEDS := "pytest-xdist>=3.8,<4" "pytest-timeout>=2.4,<3"
# By range: what the exporter writes is onnxscript's, and differs between releases.
ONNX_NEEDS := "onnx>=1.23,<1.24" "onnxscript>=0.7,<0.8" "onnxruntime>=1.32,<1.33"
TORCHRL_NEEDS := "torchrl>=0.14,<0.15"
FOREIGN_NEEDS := "torch-geometric>=2.8,<2.9" "torch-rechub>=0.9,<0.10" "sktime>=1.2,<1.3" "rsl-rl-lib>=5.5,<5.6" \
  "loguru>=0.7,<0.8"
# Without what they ask for: numpy below 2, which is not needed. There is no deepfilterlib for later Pythons.
FOREIGN_ALONE := "deepfilternet>=0.5.6,<0.6" "deepfilterlib>=0.5.6,<0.6; python_version < '3.12'"
# Pinned: what is measured is these releases. jax needs Python 3.11.
PEERS_NEEDS := numpy tqdm jax==0.10.2 "onnx>=1.23,<1.24" "onnxruntime>=1.32,<1.33" \
  "openvino>=2026.4,<2026.5" torchrl==0.14.1 tensordict==0.14.3
# Pinned: another release formats and checks differently.
LINT_NEEDS := ruff==0.17.6 mypy==2.4.1 clang-format==23.1.5 numpy

# Pinned: another release may print other words. The oldest published for CUDA 13; it reads what nvcc 13.0 makes.
NVDISASM_NEEDS := nvidia-cuda-nvdisasm==13.2.51

# $(PYTHON) itself is used when it has torch and pip may install beside it (PEP 668); otherwise .venv is.
USABLE := $(shell $(PYTHON) -c 'import importlib.util, os, sys, sysconfig; \
  managed = sys.prefix == sys.base_prefix and os.path.exists(sysconfig.get_path("stdlib") + "/EXTERNALLY-MANAGED"); \
  print("yes" if importlib.util.find_spec("torch") and not managed else "no")')
ifeq ($(USABLE),yes)
  PY := $(PYTHON)
else ifeq ($(USABLE),)
  $(error PYTHON=$(PYTHON) does not run; name a Python 3.10 or newer)
else
  PY := $(CURDIR)/.venv/bin/python
  ENVIRONMENT := .venv
endif
PIP := $(PY) -m pip --disable-pip-version-check install

# What the present build was made for; another value makes it stale, as a newer source does.
BUILD_KEY = $$($(PY) -c 'import importlib.metadata, os, sys; print(sys.prefix, sys.version.split()[0], \
  importlib.metadata.version("torch"), *(k + "=" + v for k, v in sorted(os.environ.items()) \
  if k in ("GRU_EXT_CPU_ONLY", "GRU_EXT_FORCE_CUDA", "GRU_EXT_WERROR", "GRU_EXT_SPIN_LIMIT", \
  "TORCH_CUDA_ARCH_LIST", "CUDA_HOME")))')
STAMP := build/built-for

.PHONY: help demo test test-onnx test-torchrl test-oldest arm-tools foreign nvdisasm lint format bench peers pages \
  build cuda-build gpu-kit gpu-kit-test .venv .venv-cuda .venv-gpu .venv-peers clean

help:
	@echo "make demo        train on real data with nn.LSTM, nn.GRU and gru_ext.GRU, write demo.png (DEMO_ARGS=...)"
	@echo "make test        every test (PYTEST_ARGS=...)"
	@echo "make test-onnx   the tests of ONNX export, which make test skips where its packages are missing"
	@echo "make test-torchrl  the tests of the adapter to torchrl, likewise"
	@echo "make test-oldest  tests of what depends on torch most, with the oldest supported, in .venv-gpu ($(GPU_TORCH))"
	@echo "make arm-tools   install what the tests of the Arm kernels need (Debian, as root)"
	@echo "make foreign     models of other packages, trained through gru_ext.replace or frozen"
	@echo "make build       build and install the extension, editable"
	@echo "make nvdisasm    install what benchmarks/compile_report.py --path reads machine code with"
	@echo "make lint        ruff, clang-format, mypy; that pages, links and plan's table agree with the committed results"
	@echo "make pages       generate the tables of README and docs, and plan's, from benchmarks/results"
	@echo "make format      let ruff and clang-format rewrite the sources"
	@echo "make bench       gru_ext against torch.nn.GRU, printed and in build/bench.csv (BENCH_ARGS=...)"
	@echo "make peers       gru_ext against ONNX Runtime, OpenVINO, JAX and torchrl, in .venv-peers (PEERS_ARGS=...)"
	@echo "make cuda-build  build the sdist with CUDA in .venv-cuda ($(TORCH_CUDA), 6 GB), import it, run nothing"
	@echo "make gpu-kit     compile what benchmarks/gpu.sh needs for another machine, in .venv-gpu ($(GPU_TORCH), 5 GB)"
	@echo "make gpu-kit-test  every test that needs no GPU, by the kit's Python, torch and extension (PYTEST_ARGS=...)"
	@echo "make clean       remove what was built, and the environments"
	@echo "PYTHON=$(PYTHON) has a torch to use: $(USABLE); otherwise .venv with TORCH=$(TORCH)"

demo: build
	@$(PIP) --quiet $(DEMO_NEEDS)
	$(PY) benchmarks/demo.py $(DEMO_ARGS)

test: build
	@$(PIP) --quiet $(TEST_NEEDS)
	$(PY) -m pytest $(PYTEST_ARGS)

test-onnx: build
	@$(PIP) --quiet $(TEST_NEEDS) $(ONNX_NEEDS)
	$(PY) -m pytest tests/test_onnx.py tests/test_onnx_sequences.py tests/test_onnx_frozen.py \
		tests/test_bench_frozen.py $(PYTEST_ARGS)

test-torchrl: build
	@$(PIP) --quiet $(TEST_NEEDS) $(TORCHRL_NEEDS)
	$(PY) -m pytest tests/test_integrations.py $(PYTEST_ARGS)

# Installed, so that the build in the checkout, which may be for another Python and torch, stays as it is.
test-oldest: .venv-gpu
	GRU_EXT_CPU_ONLY=1 .venv-gpu/bin/python -m pip --disable-pip-version-check install \
	  --no-build-isolation --no-deps --force-reinstall .
	PYTHONSAFEPATH=1 .venv-gpu/bin/python -m pytest $(OLDEST_TESTS) $(PYTEST_ARGS)

# What the tests of the Arm kernels need, and are skipped without. Never fails.
arm-tools:
	@missing() { ! command -v aarch64-linux-gnu-g++ > /dev/null || ! command -v qemu-aarch64 > /dev/null; }; \
	if missing && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
	    g++-aarch64-linux-gnu qemu-user; } > /dev/null || true; \
	fi; \
	! missing || echo "not checked: the Arm kernels, for g++-aarch64-linux-gnu or qemu-user is not installed"

foreign: build
	@$(PIP) --quiet $(TEST_NEEDS) $(FOREIGN_NEEDS)
	@$(PIP) --quiet --no-deps $(FOREIGN_ALONE)
	$(PY) -m pytest -s tests/test_foreign.py $(PYTEST_ARGS)

# Not remade when it has the torch asked for.
.venv:
	@if [ "$$(cat .venv/torch-requirement 2>/dev/null)" != "$(TORCH)" ]; then \
	  echo "making .venv with $(TORCH)"; \
	  $(PYTHON) -m venv .venv; \
	  .venv/bin/python -m pip --disable-pip-version-check install "$(TORCH)" $(BUILD_NEEDS); \
	  echo "$(TORCH)" > .venv/torch-requirement; \
	fi

build: $(ENVIRONMENT)
	@key="$(BUILD_KEY)"; \
	if [ "$$(cat $(STAMP) 2>/dev/null)" != "$$key" ] || ! compgen -G "gru_ext/_C*.so" > /dev/null \
	    || [ -n "$$(find csrc setup.py pyproject.toml -newer $(STAMP) -type f -print -quit)" ]; then \
	  echo "building gru_ext with $(PY) (takes minutes; MAX_JOBS limits the compilers at work)"; \
	  rm -f $(STAMP); \
	  $(PIP) --quiet $(BUILD_NEEDS); \
	  $(PIP) --no-build-isolation --no-deps --editable .; \
	  mkdir -p $(dir $(STAMP)); \
	  echo "$$key" > $(STAMP); \
	fi

nvdisasm: $(ENVIRONMENT)
	@$(PIP) --quiet $(NVDISASM_NEEDS)

lint: build
	@$(PIP) --quiet $(LINT_NEEDS)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(CLANG_FORMAT) --dry-run -Werror $(CXX_SOURCES)
	$(PY) -m mypy gru_ext benchmarks/*.py
	$(PY) benchmarks/pages.py --check
	$(PY) benchmarks/measured_table.py --check

format: $(ENVIRONMENT)
	@$(PIP) --quiet $(LINT_NEEDS)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(CLANG_FORMAT) -i $(CXX_SOURCES)

CXX_SOURCES = $(sort $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu'))
CLANG_FORMAT = "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')/clang-format"

bench: build
	@$(PIP) --quiet tqdm rich
	@mkdir -p build
	$(PY) -m gru_ext bench --preset standard --csv build/bench.csv $(BENCH_ARGS)

peers: .venv-peers
	@mkdir -p build
	.venv-peers/bin/python benchmarks/peers.py --csv build/peers.csv $(PEERS_ARGS)

# Remade when other packages are asked for. gru_ext is installed in it, so that the build in the checkout, which may be
# for another Python and torch, stays as it is.
.venv-peers:
	@if [ "$$(cat .venv-peers/requirements 2>/dev/null)" != '"$(TORCH)" $(PEERS_NEEDS)' ]; then \
	  echo "making .venv-peers with $(TORCH) and the frameworks to compare with"; \
	  rm -rf .venv-peers; \
	  $(PYTHON) -m venv .venv-peers; \
	  .venv-peers/bin/python -m pip --disable-pip-version-check install "$(TORCH)" $(BUILD_NEEDS) $(PEERS_NEEDS); \
	  echo '"$(TORCH)" $(PEERS_NEEDS)' > .venv-peers/requirements; \
	fi
	@if [ ! -e .venv-peers/built ] \
	    || [ -n "$$(find csrc $$(find gru_ext -name '*.py' -o -name '*.pyi') setup.py pyproject.toml \
	      -newer .venv-peers/built -type f -print -quit)" ]; then \
	  echo "building gru_ext with .venv-peers (takes minutes; MAX_JOBS limits the compilers at work)"; \
	  .venv-peers/bin/python -m pip --disable-pip-version-check install \
	    --no-build-isolation --no-deps --force-reinstall .; \
	  touch .venv-peers/built; \
	fi

pages: build
	$(PY) benchmarks/pages.py
	$(PY) benchmarks/measured_table.py

.venv-cuda:
	@if [ "$$(cat .venv-cuda/torch-requirement 2>/dev/null)" != "$(TORCH_CUDA)" ]; then \
	  echo "making .venv-cuda with $(TORCH_CUDA)"; \
	  $(PYTHON) -m venv .venv-cuda; \
	  .venv-cuda/bin/python -m pip --disable-pip-version-check install "$(TORCH_CUDA)" $(BUILD_NEEDS) numpy; \
	  echo "$(TORCH_CUDA)" > .venv-cuda/torch-requirement; \
	fi

# From the sdist and outside the checkout, so that neither its files nor its CPU build can stand in for the new one.
cuda-build: .venv-cuda
	rm -rf build/cuda
	.venv-cuda/bin/python setup.py --quiet sdist --dist-dir build/cuda
	GRU_EXT_FORCE_CUDA=1 .venv-cuda/bin/python -m pip --disable-pip-version-check install \
	  --no-build-isolation --no-deps --force-reinstall build/cuda/gru_ext-*.tar.gz
	cd build/cuda && $(CURDIR)/.venv-cuda/bin/python -m gru_ext info

.venv-gpu:
	@if [ "$$(cat .venv-gpu/torch-requirement 2>/dev/null)" != "$(GPU_TORCH)" ]; then \
	  echo "making .venv-gpu with $(GPU_PYTHON) and $(GPU_TORCH)"; \
	  rm -rf .venv-gpu; \
	  $(GPU_PYTHON) -m venv .venv-gpu; \
	  .venv-gpu/bin/python -m pip --disable-pip-version-check install "$(GPU_TORCH)" $(BUILD_NEEDS) $(TEST_NEEDS) \
	    $(GPU_TEST_NEEDS); \
	  echo "$(GPU_TORCH)" > .venv-gpu/torch-requirement; \
	fi

gpu-kit: .venv-gpu
	PYTHON=$(CURDIR)/.venv-gpu/bin/python TORCH_CUDA_ARCH_LIST=$(GPU_ARCH) benchmarks/gpu_kit.sh build
	PYTHON=$(CURDIR)/.venv-gpu/bin/python benchmarks/gpu_kit.sh fits
	@echo "carry, beside the checkout ($$(du -sm build/gpu-kit | cut -f 1) MiB):"
	@echo build/gpu-kit

gpu-kit-test: gpu-kit
	PYTHONPATH=$(CURDIR)/build/gpu-kit/plain PYTHONSAFEPATH=1 .venv-gpu/bin/python -m pytest $(PYTEST_ARGS)

clean:
	rm -rf build dist *.egg-info gru_ext/_C*.so gru_ext/*.json .venv .venv-cuda .venv-gpu .venv-peers
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
