# visloop: `make` prints this file's targets. `make demo` and `make test` set up everything they need themselves.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV ?= .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
UI_PORT ?= 5000
UI_STORE ?= sqlite:///mlruns/mlflow.db
SERVER_PORT ?= 4200
SLOTS ?= 1
LIMIT ?= 2
WORKERS ?= 0
PAGE_PORT ?= 7860
KILLS ?= 20
SEED ?= 0
ARGS ?=

# Packages that import no heavy library: strict types there. `make lint` also checks the frame around the flows.
TYPED := src/visloop/errors.py src/visloop/ids.py src/visloop/answers.py src/visloop/config.py src/visloop/config_assistant.py src/visloop/config_ranges.py \
	src/visloop/config_chat.py src/visloop/config_providers.py src/visloop/records \
	src/visloop/prompts src/visloop/chat/base.py src/visloop/scenes src/visloop/reasoning \
	src/visloop/assistant src/visloop/tools/base.py src/visloop/tools/values.py src/visloop/tools/signatures.py src/visloop/tools/prompt_pool.py \
	$(addprefix src/visloop/tools/,toolbox.py plugins.py plain.py failures.py tunings.py pictures.py proposals.py regions.py drawing.py emoji.py faces.py knowledge.py) \
	src/visloop/tools/expressions.py src/visloop/tools/expression_grammar.py \
	flows/_code.py flows/_entry.py flows/_environment.py flows/_folders.py flows/_workers.py flows/_servers.py flows/_stage.py \
	flows/_streams.py flows/_summary.py \
	flows/_liveness.py flows/_progress.py flows/_artifacts.py flows/operations \
	flows/_people.py flows/_words.py flows/_answer_traces.py flows/_tracking_place.py flows/backups apps \
	$(addprefix flows/,_candidates.py _champion.py _lineage.py _measured.py _objective.py _sweeps.py)

# No telemetry, from this Makefile's children either.
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := False
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(INSTALLED) ## the virtual environment with the pinned packages (what every other target asks for)

$(INSTALLED): pyproject.toml constraints.txt
	@found=
	for python in $${PYTHON:-} python3.11 python3.12 python3; do
		if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then found=$$python; break; fi
	done
	if [ -z "$$found" ]; then
		echo "make: Python 3.11 (or 3.12) is needed and none was found; install it, or name it: make PYTHON=/path/to/python3.11" >&2
		exit 1
	fi
	if ! $(RUN) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
		"$$found" -m venv --clear $(VENV)
	fi
	echo "Installing the pinned packages into $(VENV); the first time takes several minutes and about 2.5 GB."
	started=$$SECONDS
	$(RUN) -m pip install --disable-pip-version-check --no-input --progress-bar off -c constraints.txt -e '.[dev,sweeps]' \
		2> >(grep --line-buffered -vE 'Location .* is ignored|\[notice\]' >&2) \
		| awk '/^Collecting /         {n++; if (n % 25 == 0) {print "  " n " packages found"; fflush()}}
		       /^Installing collected/ {if (n) {print "  unpacking " n " packages"; fflush()}}'
	touch $@
	echo "Installed in $$((SECONDS - started)) s."

.PHONY: demo
demo: $(INSTALLED) ## both loops on the embedded default: reasoning agents and DPO rounds, then the assistant (ARGS="seed=1" ...)
	@mkdir -p outputs
	$(RUN) -m flows.clova $(ARGS) > outputs/assistant.log 2>&1 & assistant=$$!
	trap 'kill $$assistant 2>/dev/null || true' EXIT
	echo "The assistant's loop runs meanwhile, on a core of its own; what it prints goes to outputs/assistant.log and follows at the end."
	$(RUN) -m flows.pipeline workers=$(WORKERS) $(ARGS)
	failed=0
	wait $$assistant || failed=1
	trap - EXIT
	cat outputs/assistant.log
	exit $$failed

.PHONY: demo-clova
demo-clova: $(INSTALLED) ## the assistant's loop alone: instructions with feedback, reflection, learning, its table
	@$(RUN) -m flows.clova $(ARGS)

.PHONY: rollback
rollback: $(INSTALLED) ## the assistant's pools of an earlier cycle again; later cycles are set aside (CYCLE=1)
	@[ -n "$(CYCLE)" ] || { echo "make: say which cycle is the last that stays: make rollback CYCLE=1" >&2; exit 1; }
	$(RUN) -m flows.rollback assistant.tasks.back_to=$(CYCLE) $(ARGS)

.PHONY: test
test: lint ## everything that CI asks: lint, then all tests
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest -q -m "not chaos" -n 2 --dist loadfile $(ARGS)

.PHONY: chaos
chaos: $(INSTALLED) ## everything killed with -9 and started again, until it ends like a run that was not (20 minutes; KILLS=20 SEED=0)
	@export OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}
	$(RUN) -m pytest -q -m chaos $(ARGS)
	$(RUN) -m tests.chaos_run --kills $(KILLS) --seed $(SEED)

.PHONY: test-random
test-random: $(INSTALLED) ## the property tests with new random examples
	@HYPOTHESIS_PROFILE=random OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest -q -n 2 --dist loadfile tests/unit tests/prompts $(ARGS)

.PHONY: test-fast
test-fast: $(INSTALLED) ## tests without those marked slow
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest -q -m "not slow" $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## ruff, format, import rules, types, spelling
	@$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/lint-imports --no-cache > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	$(RUN) -m mypy --no-error-summary $(TYPED)
	$(VENV)/bin/codespell
	echo "lint: ok"

.PHONY: fuzz
fuzz: $(INSTALLED) ## 100,000 random and hostile programs through parser, checks, evaluator and interpreter (ARGS="--seed 1 --count ...")
	@$(RUN) -m tests.fuzz_programs $(ARGS)

.PHONY: base
base: $(INSTALLED) ## train the embedded models from nothing and write their model cards (an hour or two; finished ones are kept; SEED=0)
	@$(RUN) -m visloop.embedded.train --out .embedded --seed $(SEED)
	@$(RUN) -m visloop.embedded.train_clip --out .embedded --seed $(SEED)
	@$(RUN) -m visloop.embedded.train_owlvit --out .embedded --clip .embedded/clip --seed $(SEED)
	@$(RUN) -m visloop.embedded.train_planner --out .embedded --seed $(SEED)
	cp -r .embedded/base .embedded/judge .embedded/clip .embedded/owlvit .embedded/planner src/visloop/embedded/weights/
	@$(RUN) -m apps.weights --shipped --write src/visloop/embedded/weights.yaml

.PHONY: bench
bench: $(INSTALLED) ## speed and memory against named baselines; results in benchmarks/results
	@for script in benchmarks/[a-z]*.py; do $(RUN) -m "benchmarks.$$(basename "$$script" .py)"; done

.PHONY: ui
ui: $(INSTALLED) ## MLflow's pages on http://127.0.0.1:5000 (UI_PORT=...)
	@$(VENV)/bin/mlflow ui --backend-store-uri "$(UI_STORE)" --host 127.0.0.1 --port $(UI_PORT)

.PHONY: backup
backup: $(INSTALLED) ## data, history, feedback, Prefect's database in one folder (TO=backups/...); runs may go on
	@$(RUN) -m flows.backups save $(if $(TO),--to "$(TO)") $(ARGS)

.PHONY: restore
restore: $(INSTALLED) ## a backup into this checkout (FROM=backups/...; REPLACE=1 moves aside what is there)
	@if [ -z "$(FROM)" ]; then echo "make: name the backup: make restore FROM=backups/..." >&2; exit 1; fi
	$(RUN) -m flows.backups restore "$(FROM)" $(if $(REPLACE),--replace) $(ARGS)

.PHONY: server
server: $(INSTALLED) ## Prefect's and MLflow's servers in the background, on 127.0.0.1 (SERVER_PORT=4200 UI_PORT=5000)
	@$(RUN) -m flows.operations server --port $(SERVER_PORT) --ui-port $(UI_PORT)

.PHONY: worker
worker: $(INSTALLED) ## the worker that starts what is due, in the background (LIMIT=2 flow runs at once)
	@$(RUN) -m flows.operations worker --limit $(LIMIT)

.PHONY: deploy
deploy: $(INSTALLED) ## register the deployments of prefect.yaml (SLOTS=1 run of a queue at once)
	@$(RUN) -m flows.operations deploy --slots $(SLOTS)

.PHONY: status
status: $(INSTALLED) ## services, deployments, runs; closes runs that a crash left open
	@$(RUN) -m flows.operations status

.PHONY: stop
stop: $(INSTALLED) ## stop worker, running flows and servers
	@$(RUN) -m flows.operations stop

.PHONY: page
page: $(INSTALLED) ## ask, see every step, say right or wrong: http://127.0.0.1:7860 (PAGE_PORT=... ARGS="experiment=...")
	@$(RUN) -m apps.page --port $(PAGE_PORT) $(ARGS)

.PHONY: models
models: $(INSTALLED) ## registered models (ARGS="promote reasoner m3", "rollback reasoner", "lineage pools champion"; lists them by default)
	@$(RUN) -m apps.models $(or $(ARGS),list)

.PHONY: sweeps
sweeps: $(INSTALLED) ## the newest multirun as a table: best job, interval, seconds (ARGS="--list", "--metric ...")
	@$(RUN) -m apps.sweeps $(ARGS)

.PHONY: clean
clean: ## caches and Hydra's output folders; results stay
	@rm -rf outputs multirun .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src flows apps tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## back to a fresh checkout: also the environment, the history and every result in data/
	@if [ -x $(RUN) ] && [ -d .prefect/services ]; then $(RUN) -m flows.operations stop; fi
	rm -rf $(VENV) .prefect mlruns .embedded .dvc/cache .dvc/tmp .dvc-remote
	[ ! -d data ] || git clean -qfdx data
