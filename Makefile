# The one door: `make help` lists what there is. Everything does its own set-up on a fresh machine.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
PARALLEL ?= 1
WORKERS ?= 2
PORT ?= 5000
.DEFAULT_GOAL := help
.PHONY: help install assets demo test test-slow lint type format bench gpu-check ablations ui docker mlflow-server clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,deepspeed,server,slurm]"
	@touch $@

install: $(READY) ## Make .venv and install fusionbench with the pinned versions

assets: $(READY) ## Fetch the pinned weights and data, checked by sha256
	$(BIN)/python -m fusionbench.data.assets

demo: assets ## EI with MoR on real data: fit, result table, where the run is
	$(BIN)/fusionbench fit --config experiments/demo.yaml

test: assets ## The whole suite, at most 15 minutes on 2 cores; WORKERS=1: one process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: assets ## What takes minutes
	$(BIN)/python -m pytest -m slow

lint: $(READY) ## ruff, the import rule, the Dockerfile and compose.yaml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

type: $(READY) ## mypy, strict
	$(BIN)/mypy

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Measure speed, as ratios against a stated baseline in the same run
	$(BIN)/python -m benchmarks

gpu-check: assets ## EI, LLaMA-II and MDF on this machine's GPUs: alone, DDP, ZeRO-3, bf16; memory, speed, equal losses
	$(BIN)/python -m benchmarks.gpu_check

ablations: assets ## Every table in experiments/ablations whose data are there; PARALLEL=2: two processes
	$(BIN)/fusionbench ablate --all experiments/ablations --parallel $(PARALLEL)

ui: $(READY) ## The MLflow UI over ./runs on 127.0.0.1
	$(BIN)/fusionbench ui

docker: ## Build the image fusionbench:VERSION; BUILD='--build-arg TORCH=cpu --build-arg BASE=ubuntu:24.04': no GPU
	docker build --file docker/Dockerfile --tag fusionbench:$(VERSION) $(BUILD) .

mlflow-server: export MLFLOW_BACKEND_STORE_URI = $(or $(FUSIONBENCH_DB:postgresql://%=postgresql+pg8000://%),sqlite:///$(CURDIR)/runs/server/mlflow.db)
mlflow-server: export MLFLOW_ARTIFACTS_DESTINATION = $(CURDIR)/runs/server/artifacts
mlflow-server: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION = false
mlflow-server: export MLFLOW_DISABLE_TELEMETRY = true
mlflow-server: $(READY) ## An MLflow server on 127.0.0.1:PORT, in SQLite or in $FUSIONBENCH_DB (postgresql://...)
	@mkdir -p runs/server
	$(BIN)/mlflow server --serve-artifacts --host 127.0.0.1 --port $(PORT) --workers 2

clean: ## Remove caches; keeps .venv and runs
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
