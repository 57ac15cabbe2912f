# Everything a contributor or CI runs. Needs only Python >= 3.11 with venv and pip.
#   make demo                         the whole story on the bundled corpus
#   make test TORCH_INDEX=<url>       take torch from another wheel index (a CPU or a CUDA build)
#   make test TEST_PROCESSES=0        one test after another (default: three processes)
PYTHON      ?= python3
VENV        ?= .venv
OUT         ?= out
TORCH_INDEX ?=
TEST_PROCESSES ?= 3
BIN         := $(VENV)/bin
STAMP       := $(VENV)/.installed
# Whole files go to a process, see tests/processes.py, in the order of tests/conftest.py.
PYTEST      := $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install test test-fast test-browser test-slow lint format demo faults constraints bench-selectors bench-ops bench-throughput bench-soak bench-gpu bench-serving clean

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

test: $(STAMP)   ## run the whole suite (without the slow marker)
	$(PYTEST) -m "not slow and not browser"

test-fast: $(STAMP) ## the tests of parts, without Ray and whole jobs: the inner loop
	$(PYTEST) -m "not slow and not browser and not ray and not long"

test-browser: $(STAMP) ## the report in Debian's chromium, which is installed where that is allowed
	.ci/chromium
	$(BIN)/python -m pytest -m browser tests/browser

test-slow: $(STAMP) ## the long forms of tests, but for the fault suite (`make faults`)
	$(PYTEST) -m slow --ignore=tests/faults

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

clean:           ## remove the environment and the demo's output
	rm -rf $(VENV) $(OUT)
