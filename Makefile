# Tuneship: one set of commands. `make help` lists them.
PYTHON  ?= python3
STORE   ?= models
CONFIG  ?= configs/demo.toml
DATA    ?=
QUESTIONS ?= data/handbook-en/questions.jsonl
RUN     ?= current
HOST    ?= 127.0.0.1
PORT    ?= 8000
URL     ?= http://127.0.0.1:$(PORT)/v1
ARGS    ?=
TO      ?= tuneship-bundle
IMAGES  ?= tuneship/trainer:local-cpu tuneship/server-llamacpp:local-cpu tuneship/clients:local-cpu
RUNTIME ?= auto
ACCELERATOR ?= auto
export RUNTIME ACCELERATOR

run     := $(PYTHON) tools/runtime.py
store   := $(PYTHON) -m modelstore --store $(STORE)

.DEFAULT_GOAL := help
.PHONY: help setup demo train serve eval bench rate report chat logs ps down runs promote rollback prune deploy bundle load sbom audit plan llamacpp doctor check test test-gpu bench-gpu clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: DATA CONFIG QUESTIONS STORE RUN TO HOST PORT URL PYTHON RUNTIME ACCELERATOR, and ARGS for any further option"

setup: ## make or refresh the environments below .venv/
	@$(PYTHON) tools/envs.py

demo: ## the whole job on this machine: train, verify, serve, evaluate, report
	@$(PYTHON) tools/demo.py --store $(STORE)

train: ## fine-tune on DATA=my.jsonl with CONFIG=configs/demo.toml; resumes by itself
	@$(run) train --config $(CONFIG) --store $(STORE) $(if $(DATA),--data $(DATA)) $(ARGS)

serve: ## serve RUN=current and its base model on HOST:PORT
	@$(run) serve $(RUN) --store $(STORE) --host $(HOST) --port $(PORT) $(ARGS)

eval: ## ask the server at URL the QUESTIONS, base against tuned
	@$(run) eval --url $(URL) --questions $(QUESTIONS) --store $(STORE) $(ARGS)

bench: ## measure latency and throughput of the server at URL
	@$(run) bench --url $(URL) --store $(STORE) $(ARGS)

rate: ## a page on this machine for blind human rating of RUN's answers
	@$(PYTHON) tools/envs.py clients
	@.venv/clients/bin/python -m clients rate $(RUN) --store $(STORE) $(ARGS)

report: ## write the report of RUN's newest evaluation again
	@$(run) report $(RUN) --store $(STORE) $(ARGS)

chat: ## talk to the server at URL
	@$(run) chat --url $(URL) $(ARGS)

logs: ## follow what the containers say
	@$(run) logs $(ARGS)

ps: ## the containers and their health
	@$(run) ps $(ARGS)

down: ## end the containers; the store stays
	@$(run) down $(ARGS)

runs: ## what is in the store
	@$(store) runs $(ARGS)

promote: ## let the channel `current` name RUN=…, unless it failed its verification or evaluation
	@$(store) promote $(RUN) $(ARGS)

rollback: ## let the channel `current` name the run before
	@$(store) rollback $(ARGS)

prune: ## delete the runs that no channel names
	@$(store) prune $(ARGS)

deploy: ## over ssh to HOST="user@gpu1 …": check, copy, build, start; ARGS for tools/deploy.py
	@$(PYTHON) tools/deploy.py $(HOST) $(or $(ARGS),--profile train --profile serve-vllm)

bundle: ## pack images, RUN, data and checksums into the folder TO=… for a host without a network
	@$(PYTHON) tools/bundle.py pack $(TO) --store $(STORE) --run $(RUN) $(ARGS)

load: ## restore such a folder: run it there
	@$(PYTHON) tools/bundle.py load

sbom: ## what lies in the images, as CycloneDX files below sbom/: IMAGES="tuneship/clients:local-cpu …"
	@$(PYTHON) tools/envs.py clients --dev
	@.venv/clients/bin/python tools/sbom.py $(IMAGES) $(ARGS)

audit: ## ask for known vulnerabilities of every locked package; needs a network
	@$(PYTHON) tools/envs.py audit
	@$(PYTHON) tools/audit.py $(ARGS)

plan: ## memory, disk and time of CONFIG before anything is downloaded; ARGS="--fit 24GiB" proposes what fits
	@$(PYTHON) tools/envs.py trainer
	@.venv/trainer/bin/python -m trainer plan $(CONFIG) --store $(STORE) $(if $(DATA),--data $(DATA)) $(ARGS)

llamacpp: ## compile llama.cpp for this processor, and its GPU with the CUDA toolkit: faster than the package's
	@$(PYTHON) tools/llamacpp.py $(ARGS)

doctor: ## look whether this machine can train, serve and deploy; names what mends each failure
	@$(PYTHON) tools/doctor.py --config $(CONFIG) --store $(STORE) --port $(PORT) $(ARGS)

check: ## formatting, lint and types of everything
	@$(PYTHON) tools/envs.py --dev
	@$(PYTHON) tools/check.py

test: check ## everything: checks, unit tests, real engines, the real demo
	@$(PYTHON) tools/test.py $(ARGS)

test-gpu: ## the GPU suite: PHI3_TOKENIZER=FOLDER with Phi-3's tokenizer files; results go to benchmarks/results/
	@$(PYTHON) tools/envs.py --dev
	@.venv/trainer/bin/python -m tests.gpu.run $(if $(PHI3_TOKENIZER),--phi3-tokenizer $(PHI3_TOKENIZER)) $(ARGS)

bench-gpu: ## the whole GPU table on all cards: PHI3_TOKENIZER=FOLDER; ARGS="--list" says what that is
	@$(PYTHON) tools/envs.py --dev
	@.venv/trainer/bin/python benchmarks/gpu_table.py $(if $(PHI3_TOKENIZER),--phi3-tokenizer $(PHI3_TOKENIZER)) $(ARGS)

clean: ## remove the environments and caches (never the store)
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis .coverage*
