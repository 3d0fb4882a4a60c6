# The verbs of this project. `make help` lists them. Everything runs in .venv, which `make setup` makes.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
SHELL_FILES = $(shell find . -path ./$(VENV) -prune -o -path ./.git -prune -o -path ./build -prune -o -path "./tests/*/golden" -prune -o \
	-type f \( -name '*.sh' -o -name '*.sbatch' -o -path './.ci/run' \) -print)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full check format bench docs docker-cpu lock clean

help:                     ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 12

setup: $(STAMP)           ## make .venv and install everything into it (again only when what it installs has changed)

$(STAMP): pyproject.toml requirements/build.txt requirements/dev.txt scripts/setup.sh
	PYTHON="$(PYTHON)" bash scripts/setup.sh "$(VENV)"
	@touch $@

demo: setup               ## text in, a pretrained and fine-tuned ELECTRA out, on 2 ranks, under 6 minutes
	PATH="$(abspath $(BIN)):$$PATH" bash examples/demo/run.sh

test: setup               ## every suite that this machine can run; REQUIRE=mpi,slurm,ssh fails where one is missing
	$(BIN)/python scripts/run_tests.py $(SUITES)

test-full: setup          ## the same with the tests marked slow: hours
	$(BIN)/python scripts/run_tests.py --full $(SUITES)

check: setup              ## style, types, layers, what a login node imports, shell scripts, Dockerfiles
	@! git grep -nE '^(<{7}|>{7}) '  # what a merge has left
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/python scripts/check_login_imports.py
	$(BIN)/shellcheck --external-sources $(SHELL_FILES)
	$(BIN)/hadolint docker/Dockerfile docker/cpu.Dockerfile

format: setup             ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup              ## every script in benchmarks/, or those named: make bench ONLY="reading"
	@set -e; for name in $(or $(ONLY),$(basename $(notdir $(wildcard benchmarks/*.py)))); do \
		echo "=== $$name ==="; $(BIN)/python benchmarks/$$name.py; done

docs: setup               ## every link in the Markdown files leads somewhere
	$(BIN)/python scripts/check_links.py

docker-cpu:               ## build docker/cpu.Dockerfile for real, without Docker, and let the doctor look at it (root, Debian)
	bash docker/build_cpu.sh

lock:                     ## write requirements/*.txt anew from what .venv has; UPGRADE=1 takes the newest releases
	bash scripts/lock.sh $(BIN)/python

clean:                    ## remove what builds and tests left; .venv and the demo's downloads stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
