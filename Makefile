# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each builds the virtual environment it needs from pyproject.toml and constraints.txt alone.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TABLES := $(addprefix reports/measured/runs/, ultrascale_h100.csv vtrain_a100_single_node.csv \
            measured_runs.csv measured_runs_partial.csv)
LOGS   := reports/measured/cpu/*/steps.jsonl reports/measured/h200/logs/*/steps.jsonl
MOAI   := reports/measured/moai/*.log
ROWS   := build/holdout.json
TABLE_STACKS := nanotron nanotron-early llm-foundry megatron megatron-deepspeed torchtune mlperf-nvidia mlperf-amd generic

.PHONY: demo demo-picture test test-fast coverage test-oldest test-newest test-wheel lint types fit hold-out report parity overhead saving accelerator cpu-runs bench live-page dry-runs fuzz tables further-runs cases faults clean

demo: $(VENV)/base.stamp
	$(BIN)/estimate --flavor 4xLarge.2048GB

# each worker takes neighbours, which share what their module made; bytecode is kept: hundreds of commands are started
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal

test: $(VENV)/dev.stamp lint types
	$(PYTEST)

test-fast: $(VENV)/dev.stamp  ## all but the slow ones
	$(PYTEST) -m 'not slow'

coverage: $(VENV)/dev.stamp  ## the lines of each package that the tests run, those of the processes that they start too
	$(BIN)/coverage erase
	PYTHONDONTWRITEBYTECODE= $(BIN)/coverage run -m pytest -n auto --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered
	@for package in hardware estimator trainer; do \
	  echo "$$package: $$($(BIN)/coverage report --include="$$package/*" --format=total) %"; done

# the same tests on other versions: each in an environment of its own under build/
test-oldest: export CONSTRAINTS = constraints-oldest.txt
test-oldest test-newest:  ## on the oldest versions that pyproject.toml allows; on the newest there are (torch as ever)
	rm -rf build/$@
	$(PYTHON) -m venv build/$@
	build/$@/bin/pip install --quiet torch==2.13.0
	build/$@/bin/pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[train,dev]'
	build/$@/bin/python -m pytest -n auto --dist worksteal

test-wheel: AT = build/test-wheel
test-wheel:  ## the wheel as installed, outside the tree and without torch: all tests but the trainer's
	rm -rf $(AT) build/lib build/bdist.*
	$(PYTHON) -m venv $(AT)/venv
	$(AT)/venv/bin/pip wheel --quiet --no-deps --wheel-dir $(AT) .
	$(AT)/venv/bin/pip install --quiet --constraint constraints.txt $(AT)/*.whl amdsmi hypothesis nvidia-ml-py pytest pytest-xdist starlette uvicorn vl-convert-python
	mkdir $(AT)/tree
	cp -r README.md docs pyproject.toml reports tests $(AT)/tree
	rm -r $(AT)/tree/tests/parity $(AT)/tree/tests/trainer
	cd $(AT)/tree && ../venv/bin/python -m pytest -n auto --dist worksteal tests

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

# one thread of linear algebra, so that a fit is the same to the last digit whatever the number of cores
fit fit-% hold-out report: export OMP_NUM_THREADS = 1

fit: fit-moai-24.2 fit-reference $(addprefix fit-, $(TABLE_STACKS))  ## every stack from reports/measured (-j fits several at once)

fit-moai-24.2: $(VENV)/base.stamp
	$(BIN)/calibrate $(MOAI) --stack moai-24.2 --write --in-place > /dev/null

fit-reference: $(VENV)/base.stamp
	$(BIN)/calibrate $(LOGS) --stack reference --write --in-place > /dev/null

fit-%: $(VENV)/base.stamp  ## one stack of the tables, its file in estimator/data/fits rewritten
	$(BIN)/calibrate $(TABLES) --stack $* --write --in-place > /dev/null

hold-out: $(VENV)/base.stamp  ## predict all measured runs by fits that never saw them, on all cores; each run: build/holdout.json
	mkdir -p build
	$(BIN)/calibrate $(TABLES) $(LOGS) $(MOAI) --hold-out --rows $(ROWS) --json > build/hold_out.json
	mv build/hold_out.json reports/calibration/hold_out.json
	$(BIN)/python reports/measured/tables/compare_peers.py $(ROWS)

$(ROWS):
	$(MAKE) hold-out

report: $(VENV)/base.stamp $(ROWS)  ## the report of each stack, from what was measured and build/holdout.json
	$(BIN)/calibrate $(TABLES) $(LOGS) $(MOAI) --rows $(ROWS) --report reports/calibration

demo-picture: $(VENV)/base.stamp  ## docs/demo.svg, from what the demo prints
	$(BIN)/python benchmarks/demo_picture.py

parity: $(VENV)/dev.stamp  ## every plan of the trainer against one plain loop, 20 steps each; rewrites its report
	$(BIN)/python -m tests.parity.report

overhead: $(VENV)/dev.stamp  ## the trainer's step beside a plain loop's and transformers.Trainer's
	$(BIN)/python benchmarks/overhead.py

saving: $(VENV)/dev.stamp  ## what a checkpoint every 20 steps costs, written meanwhile and waited for; two ranks, four minutes
	$(BIN)/python -m benchmarks.saving

cpu-runs: $(VENV)/dev.stamp  ## runs of the trainer on this machine's processors: reports/measured/cpu, about 40 minutes
	$(BIN)/python benchmarks/cpu_runs.py

accelerator: $(VENV)/dev.stamp  ## on a machine with one accelerator: every path, then measured runs; nine minutes
	$(BIN)/python benchmarks/accelerator.py --smoke --seconds 150
	$(BIN)/python benchmarks/accelerator.py

bench: $(VENV)/base.stamp  ## plans per second, whole searches, growth; nothing is asserted
	$(BIN)/python benchmarks/search.py

live-page: $(VENV)/dev.stamp  ## how long 50 clients of the live page wait; nothing is asserted
	$(BIN)/python benchmarks/live_page.py

tables: $(VENV)/base.stamp  ## published tables and MoAI's, in the formats that calibrate reads: reports/measured/runs, timings
	$(BIN)/python reports/measured/tables/convert_all.py
	$(BIN)/python reports/measured/moai/convert_runs.py

further-runs: $(VENV)/base.stamp  ## published runs that no stack was fitted to, predicted: reports/validation/further_runs.md
	$(BIN)/python reports/measured/tables/predict_further.py

cases: $(VENV)/base.stamp  ## what people ran and what happened, beside what is said of it: reports/validation/cases.md
	$(BIN)/python reports/measured/cases/predict_cases.py

fuzz: $(VENV)/dev.stamp  ## 100,000 mutated logs and tables over every reader
	$(BIN)/python -m tests.support.fuzz

dry-runs: $(VENV)/dev.stamp  ## Mistral-7B under plans of each kind on fake tensors: reports/measured/dry_run/runs.csv
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/dry_runs.py

memory-grid: $(VENV)/dev.stamp  ## torch's tracker and the formulas over a grid of steps, 6 minutes: reports/validation/memory.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory_grid

faults: $(VENV)/dev.stamp  ## 200 runs killed, stopped or damaged at random moments, and continued, an hour: reports/validation/faults.md
	$(BIN)/python -m benchmarks.faults

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build ./*.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/base.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

# torch first and alone: a range would pull an accelerator build of several gigabytes where a CPU build will do
$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,dev]'
	touch $@ $(VENV)/base.stamp
