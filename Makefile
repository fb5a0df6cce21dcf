# `make demo` and `make test` do all they need on a machine with Python 3.11; a second run installs nothing.

PYTHON ?= python3.11
VENV ?= .venv
WORKDIR ?= runs/demo
DEMO_FLAGS ?=
FUZZ_SEED ?= 0
PYTEST_FLAGS ?= --numprocesses=2 --dist=loadfile

# A thread for each worker: more of them than cores get in each other's way.
TEST := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1
RUN := TF_CPP_MIN_LOG_LEVEL=3 $(VENV)/bin/python -m
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-docs test-real test-families test-kill test-mutation test-matrix fuzz bazel bazel-test docs lint format clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(STAMP)  ## Create .venv and install everything, as pinned in constraints.txt.

$(STAMP): setup.py constraints.txt $(wildcard tf_fpq/native/*.cc tf_fpq/native/*.h)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[experiments,dev,docs,notebooks]'
	$(RUN) tf_fpq.native || echo "Training goes on without it, slower."
	touch $@

demo: $(STAMP)  ## Digits, resnet8, W4A4, FPQ: train, export to int8, verify (about a minute).
	$(RUN) experiments.train --workdir=$(WORKDIR) $(DEMO_FLAGS)

test: $(STAMP)  ## Run the tests, without the slow ones.
	$(TEST) $(RUN) pytest $(PYTEST_FLAGS)

test-slow: $(STAMP)  ## Run the slow tests only.
	$(TEST) $(RUN) pytest -m slow $(PYTEST_FLAGS)

test-families: $(STAMP)  ## The smallest model of each family of keras.applications, from quantization to verification.
	$(TEST) $(RUN) pytest -m slow -k smallest_of_each_family tests/experiments/evidence/test_coverage.py --numprocesses=2

test-docs: $(STAMP)  ## Run the pages with trainings, and the notebooks (some minutes).
	$(RUN) pytest -m slow tests/test_docs.py tests/test_notebooks.py

test-kill: $(STAMP)  ## Kill a training 50 times; it must end as if nothing had happened (a quarter of an hour).
	$(RUN) experiments.evidence.kill_test --kills=50

test-mutation: $(STAMP)  ## A random sample of mutants of the core; the tests should see them (an hour or more).
	$(VENV)/bin/python -m pip install --quiet --editable '.[maintenance]'
	$(RUN) tools.mutation --mutants=150 --results=runs/mutants.jsonl

test-matrix: $(STAMP)  ## The oldest and the newest versions, and the wheel, each in an environment of its own.
	$(VENV)/bin/python -m pip install --quiet --editable '.[maintenance]'
	$(VENV)/bin/nox

test-real: $(STAMP)  ## Trained networks of others, out of their wheels, to verified files (some minutes).
	$(RUN) pytest -m slow tests/experiments/evidence/test_real_networks.py

fuzz: $(STAMP)  ## Random networks through the exporter, for five minutes; FUZZ_SEED is the first.
	$(RUN) experiments.evidence.fuzz --models=1000000 --minutes=5 --seed=$(FUZZ_SEED)

bazel: $(STAMP)  ## Build all targets with Debian's Bazel, where it is installed, and run a few tests under it.
	@if command -v bazel >/dev/null; then \
	  $(RUN) tools.bazel_offline build //... && \
	  $(RUN) tools.bazel_offline test --local_test_jobs=1 //tests/tools:all //tests/tflite_export:test_console; \
	else echo "Bazel is not installed (apt-get install bazel-bootstrap bazel-rules-java); nothing was built."; fi

bazel-test: $(STAMP)  ## The default suite under Bazel, a test file at a time (45 minutes of CPU time).
	$(RUN) tools.bazel_offline test --jobs=1 --local_test_jobs=1 --keep_going //tests/...

docs: $(STAMP)  ## Write the docs site to site/; a warning is an error.
	$(VENV)/bin/mkdocs build --strict

lint: $(STAMP)  ## Check style, imports and docstrings.
	$(RUN) ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror tf_fpq/native/*.cc tf_fpq/native/*.h
	$(RUN) ruff check .
	$(RUN) tools.build_files --check
	$(RUN) tools.buildifier
	$(RUN) mypy

format: $(STAMP)  ## Format the sources and write the BUILD files.
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(VENV)/bin/clang-format -i tf_fpq/native/*.cc tf_fpq/native/*.h
	$(RUN) tools.build_files

clean:  ## Remove what the other targets made, except runs/.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
