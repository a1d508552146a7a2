# Every target but clean sets up .venv by itself when it is missing or when what it was made from has changed.
#   make demo | test | test-install | test-matrix | test-aarch64 | lint | format | docs | bench | weak-data | gpu-check OUT=dir | clean
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
OUT ?= outputs/gpu-check
PYTEST_ARGS ?=
GPU_CHECK_ARGS ?=
# CamVid, as a folder (docs/data.md) or as camvid_train.zip.
DATA ?= $(or $(OVSDINO_DATA),$(firstword $(wildcard data ../shared/data)),data)
CAMVID_TRAIN = $(firstword $(wildcard $(DATA)/camvid_train.zip) $(DATA)/camvid/train)

# Code for this machine's GPU; where there is none, for Jetson Orin and Hopper: half the build time of all ten.
OVSDINO_CUDA_ARCHS ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | grep -x '[0-9]*' | sort -u | paste -s -d ';' -),87;90)
export OVSDINO_CUDA_ARCHS
export PIP_DISABLE_PIP_VERSION_CHECK := 1

NATIVE_SOURCES := CMakeLists.txt scripts/build_native.py $(shell find csrc -type f)
CLANG_FORMAT_SOURCES := $(shell find csrc deploy/cpp -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.PHONY: setup demo test test-install test-matrix test-aarch64 lint format docs bench weak-data gpu-check clean
setup: $(VENV)/.native

# The build tools come first, so that pip builds with them and ninja's second run finds nothing changed. constraints.txt
# lists all that is needed, so pip resolves nothing and takes only files with the hashes that are written there.
BUILD_TOOLS := setuptools|wheel|packaging|pybind11|ninja|cmake
HASHED := $(PY) -m pip install --require-hashes --no-deps --no-build-isolation
$(VENV)/.installed: pyproject.toml constraints.txt setup.py
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	awk '/^[a-z]/ {kept = /^($(BUILD_TOOLS))==/} kept' constraints.txt > $(VENV)/build-tools.txt
	$(HASHED) -q -r $(VENV)/build-tools.txt
	$(HASHED) -r constraints.txt
	$(PY) -m pip install --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.native: $(VENV)/.installed $(NATIVE_SOURCES)
	$(PY) scripts/build_native.py
	touch $@

demo: setup
	image=$$($(PY) -c "from importlib.resources import files; print(files('sklearn') / 'datasets/images/china.jpg')") \
	  && $(VENV)/bin/ovsdino segment "$$image" --classes "sky,temple,tree" --output outputs/demo
	@echo "the overlay is in $(CURDIR)/outputs/demo:" && ls outputs/demo

# Two workers, a file of tests to one of them: each holds torch and a model, 2 GB at most. PYTEST_ARGS="-n 0" for a debugger.
test: setup
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-install: setup
	$(PY) -m pytest -q -m slow tests/install $(PYTEST_ARGS)

# Python 3.10, numpy 1.26 and torch 2.5 and 2.8, as JetPack 6 has them: 12 GB of downloads, removed afterwards.
test-matrix:
	$(PYTHON) scripts/test_matrix.py $(MATRIX_ARGS)

# Needs Debian's g++-aarch64-linux-gnu and qemu-user.
test-aarch64: setup
	$(PY) -m pytest -q -s -m "slow or not slow" tests/ops/test_aarch64.py tests/ops/test_native.py -k aarch64 $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CLANG_FORMAT_SOURCES)

format: setup
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/clang-format -i $(CLANG_FORMAT_SOURCES)

# The site of docs/, in an environment of its own; no page asks another server for anything.
DOCS_ENV := build/docs-env
$(DOCS_ENV)/.installed: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS_ENV)
	$(DOCS_ENV)/bin/python -m pip install -q --require-hashes --no-deps -r docs/requirements.txt
	touch $@

docs: $(DOCS_ENV)/.installed
	$(DOCS_ENV)/bin/python scripts/docs_site.py build/site
	NO_COLOR=1 $(DOCS_ENV)/bin/zensical build --strict -f build/site/zensical.toml
	@echo "open $(CURDIR)/build/site/html/index.html"

bench: setup
	mkdir -p outputs/bench
	$(PY) benchmarks/ops.py --json > outputs/bench/ops.json
	@echo "wrote outputs/bench/ops.json"

# What configs/weak_*.yaml but weak_b14 read, of CamVid and of VOC where its images are: captions, pseudo-masks, and the
# masks of the study's controls. 15 to 20 minutes for each; the masks go on where they were stopped. The configurations
# look for images in `data`. masks_segments are regions of the labels.
WEAK_SETS = camvid $(if $(wildcard $(DATA)/voc21_train.zip),voc21)
WEAK_CAPTIONS_camvid = --dataset camvid
WEAK_CAPTIONS_voc21 = --dataset voc21 --whole --least 0
WEAK_IMAGES_camvid = $(CAMVID_TRAIN)
WEAK_IMAGES_voc21 = $(DATA)/voc21_train.zip
CONTROLS := $(PY) -m ovsdino.train.masks.controls
weak-data: setup $(WEAK_SETS:%=weak-data-%)
weak-data-%: setup
	mkdir -p runs/weak/$* && { [ -e data ] || ln -s $(abspath $(DATA)) data; }
	$(PY) -m ovsdino.train.weak.compose_captions --root $(DATA) $(WEAK_CAPTIONS_$*) --output runs/weak/$*/captions.jsonl
	$(VENV)/bin/ovsdino masks --generator felzenszwalb --images $(WEAK_IMAGES_$*) --output runs/weak/$*/masks
	$(VENV)/bin/ovsdino masks --from runs/weak/$*/masks --corrupt 0.3 --output runs/weak/$*/masks_corrupt30
	$(CONTROLS) --from runs/weak/$*/masks --kind foreign --output runs/weak/$*/masks_foreign
	$(CONTROLS) --from runs/weak/$*/masks --kind rectangles --output runs/weak/$*/masks_rectangles
	$(CONTROLS) --from runs/weak/$*/masks --kind segments --dataset $* --root $(DATA) --output runs/weak/$*/masks_segments

# A GPU machine may have torch but no network, so its own Python is taken when that has all the check needs.
GPU_PYTHON = $(or $(shell $(PYTHON) -c 'import numpy, pytest, timm, torch, triton; print("$(PYTHON)")' 2>/dev/null),$(PY))
gpu-check: $(if $(filter $(PY),$(GPU_PYTHON)),setup)
	$(GPU_PYTHON) scripts/gpu_check.py --output $(OUT) $(GPU_CHECK_ARGS)

clean:
	rm -rf $(VENV) build dist outputs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f ovsdino/_C*.so
	find ovsdino kernels deploy scripts tests -name __pycache__ -type d -exec rm -rf {} +
