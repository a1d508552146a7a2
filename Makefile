# Each target but help, demo, docs and clean sets up .venv by itself when it is missing or when what it was made from has
# changed; demo and docs have small environments of their own. `make help` lists the targets.
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

.PHONY: help setup demo sbom shipped-graph test test-page test-install test-matrix test-aarch64 lint format docs bench weak-data gpu-check clean
setup:  ## the whole environment in .venv: development, training, export, native code (6 GB, 3 minutes)
	@$(MAKE) --no-print-directory -j 3 $(addprefix $(VENV)/.,large native others package)

help:  ## this list
	@awk -F ':.*##' '/^[a-z0-9-]+:.*##/ {printf "make %-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

# constraints.txt lists all that is needed, so pip resolves nothing and takes only files with the hashes that are written
# there. pip and its unpacking use one core: the large files, the others and the native module go on at the same time.
BUILD_TOOLS := setuptools|wheel|packaging|pybind11|ninja|cmake
LARGE := nvidia-.*|torch|triton|tensorrt-rtx-cu13-libs
HASHED := $(PY) -m pip install -qq --require-hashes --no-deps --no-build-isolation
PICK = awk '/^[a-z]/ {kept = /^($(1))==/} kept' constraints.txt
$(VENV)/.tools: constraints.txt
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(call PICK,$(BUILD_TOOLS)) > $(VENV)/tools.txt
	$(call PICK,$(LARGE)) > $(VENV)/large.txt
	awk '/^[a-z]/ {kept = !/^($(BUILD_TOOLS)|$(LARGE))==/} kept' constraints.txt > $(VENV)/others.txt
	$(HASHED) -r $(VENV)/tools.txt
	touch $@

$(VENV)/.large $(VENV)/.others: $(VENV)/.%: $(VENV)/.tools
	$(HASHED) -r $(VENV)/$*.txt
	touch $@

# CXX=none: the module is compiled by the next rule.
$(VENV)/.package: $(VENV)/.tools pyproject.toml setup.py
	CXX=none $(PY) -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.native: $(VENV)/.tools $(NATIVE_SOURCES)
	$(PY) scripts/build_native.py
	touch $@

# The shipped model on a photograph, in an environment without torch and without a compiler. scikit-learn brings the
# photograph alone: nothing of it is imported. Packages and hashes are those of constraints.txt.
DEMO := build/demo
DEMO_PACKAGES := flatbuffers|markdown-it-py|mdurl|numpy|onnxruntime|packaging|pillow|protobuf|pygments|rich|safetensors
DEMO_EXTRA := setuptools|wheel|scikit-learn
$(DEMO)/.installed: pyproject.toml constraints.txt setup.py
	@mkdir -p build && $(PYTHON) -m venv $(DEMO)
	@awk '/^[a-z]/ {kept = /^($(DEMO_PACKAGES)|$(DEMO_EXTRA))==/} kept' constraints.txt > $(DEMO)/packages.txt
	@echo "installing what the demo needs into $(DEMO) (0.3 GB)"
	@$(DEMO)/bin/python -m pip install -qq --require-hashes --no-deps -r $(DEMO)/packages.txt
	@CXX=none $(DEMO)/bin/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

demo: $(DEMO)/.installed  ## segment a photograph with the shipped model: no torch, no compiler (0.3 GB, 2 minutes)
	@$(DEMO)/bin/ovsdino segment $(DEMO)/lib/python3*/site-packages/sklearn/datasets/images/china.jpg \
	  --classes "sky,temple,tree" --output outputs/demo
	@echo "look at $(CURDIR)/outputs/demo/china_overlay.png"

sbom:  ## a bill of materials of what constraints.txt pins, build/sbom.json
	$(or $(wildcard $(PY)),$(PYTHON)) scripts/sbom.py build/sbom.json

shipped-graph: setup  ## write the graph of the shipped model anew, after a change of its modules
	$(PY) -m ovsdino.deploy.export.shipped

# Two workers, a file of tests to one of them: each holds torch and a model, 2 GB at most. PYTEST_ARGS="-n 0" for a debugger.
test: setup  ## the tests (15 minutes on two cores)
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-page: setup  ## the page and the endpoint; its browser needs Debian's chromium and chromium-driver
	$(PY) -m pytest -q tests/serve $(PYTEST_ARGS)

test-install: setup  ## the slow tests of wheels and installs
	$(PY) -m pytest -q -m slow tests/install $(PYTEST_ARGS)

# Python 3.10, numpy 1.26 and torch 2.5 and 2.8, as JetPack 6 has them: 12 GB of downloads, removed afterwards.
test-matrix:  ## the older Python and torch of JetPack 6 (12 GB of downloads, removed afterwards)
	$(PYTHON) scripts/test_matrix.py $(MATRIX_ARGS)

# Needs Debian's g++-aarch64-linux-gnu and qemu-user.
test-aarch64: setup  ## native code for Jetson under qemu-user
	$(PY) -m pytest -q -s -m "slow or not slow" tests/ops/test_aarch64.py tests/ops/test_native.py -k aarch64 $(PYTEST_ARGS)

lint: setup  ## ruff, mypy, clang-format
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CLANG_FORMAT_SOURCES)

format: setup  ## format and repair what the tools can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/clang-format -i $(CLANG_FORMAT_SOURCES)

# The site of docs/, in an environment of its own; no page asks another server for anything.
DOCS_ENV := build/docs-env
$(DOCS_ENV)/.installed: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS_ENV)
	$(DOCS_ENV)/bin/python -m pip install -qq --require-hashes --no-deps -r docs/requirements.txt
	touch $@

docs: $(DOCS_ENV)/.installed  ## the documents as a site in build/
	$(DOCS_ENV)/bin/python scripts/docs_site.py build/site
	NO_COLOR=1 $(DOCS_ENV)/bin/zensical build --strict -f build/site/zensical.toml
	@echo "open $(CURDIR)/build/site/html/index.html"

bench: setup  ## time the ops against their references
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
weak-data: setup $(WEAK_SETS:%=weak-data-%)  ## captions and pseudo-masks for the studies (20 minutes a data set)
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
gpu-check: $(if $(filter $(PY),$(GPU_PYTHON)),setup)  ## what only a GPU can check, into OUT=dir
	$(GPU_PYTHON) scripts/gpu_check.py --output $(OUT) $(GPU_CHECK_ARGS)

clean:  ## remove environments, build products and outputs
	rm -rf $(VENV) build dist outputs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f ovsdino/_C*.so
	find ovsdino kernels deploy scripts tests -name __pycache__ -type d -exec rm -rf {} +
