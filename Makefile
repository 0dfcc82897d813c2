# FlowML. `make` lists what there is. Everything that is made lies in .venvs/, node_modules/,
# static/vendor/ and var/, which git ignores.

# tools/venvs.py says what is wrong with any other Python.
PYTHON ?= $(firstword $(shell command -v python3.11) python3)
ARGS ?=
# What `make up` brings along; `make engine NAME=flaml` brings another.
ENGINES ?= pycaret autogluon sklearn
# What the tests need; test-rest tries the others.
TESTED := pycaret sklearn sklearn-1.4 sklearn-1.9
HEAVY := autogluon flaml torch tensorflow fuxictr
WEB := .venvs/web/bin/python
DEV := .venvs/dev/bin/python

MYPY := SECRET_KEY=only-for-mypy $(DEV) -m mypy
# `check --deploy` and the migrations check see what an installation behind HTTPS would.
PRODUCTION := DEBUG=0 PUBLIC_URL=https://flowml.example.org \
	SECRET_KEY=only-for-the-check-0123456789-abcdefghijklmnopqrstuvwxyz

.DEFAULT_GOAL := help
.PHONY: help demo up venvs engine dev assets test test-quick test-rest test-all screenshots chaos bench lint format typecheck lock clean clean-all
.NOTPARALLEL:

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
	@echo
	@echo "make demo ARGS=--exit    the demo, and stop after it"
	@echo "make up PORT=8001        another port; .env.example lists all settings"

demo: venvs assets  ## start the platform, train on a sample data set and stay up
	@$(WEB) manage.py demo $(ARGS)

up: venvs assets  ## start the platform until Ctrl-C
	@$(WEB) manage.py up $(ARGS)

venvs:  ## the virtualenvs that the platform runs in
	@$(PYTHON) tools/venvs.py web node $(ENGINES)

engine:  ## another engine's virtualenv: make engine NAME=flaml (several names are fine, too)
	@$(PYTHON) tools/venvs.py --engine $(NAME)

dev: assets  ## the virtualenvs for work on the code as well
	@$(PYTHON) tools/venvs.py web node $(TESTED) dev

assets:  ## the front-end files in static/vendor
	@$(PYTHON) tools/npm.py

test: lint  ## lint and all tests but those in a browser, of heavy engines, or that kill processes
	@$(DEV) -m pytest -m "not browser and not chaos and not heavy" $(ARGS)

test-quick: dev  ## the tests that need a second each at most
	@$(DEV) -m pytest -m "not (engine or e2e or browser or chaos or slow)" $(ARGS)

test-rest: dev  ## the tests that `make test` leaves out
	@$(PYTHON) tools/venvs.py $(HEAVY) spark
	@$(DEV) -m pytest -m "(browser or chaos or heavy) and not alone" $(ARGS)
	@$(DEV) -m pytest -m alone -n 0 $(ARGS)

test-all: test test-rest  ## everything that can be tested

screenshots: dev  ## every page, in three widths, light and dark, into test-artifacts/browser
	@$(DEV) -m pytest tests/browser/test_every_page.py -k "every_page or signed_out" $(ARGS)

chaos: dev  ## a storm of kills over a fleet, and a report (ARGS="--seed 7" strikes the same again)
	@$(DEV) -m tests.chaos $(ARGS)

bench: dev  ## the benchmarks, each beside a peer or a limit
	@$(DEV) -m benchmarks $(ARGS)

lint: dev  ## style, imports between apps, types, settings, migrations
	@$(DEV) -m ruff check .
	@$(DEV) -m ruff format --check .
	@.venvs/dev/bin/lint-imports
	@$(MYPY)
	@$(PRODUCTION) $(DEV) manage.py check --deploy --fail-level WARNING
	@$(PRODUCTION) $(DEV) manage.py makemigrations --check --dry-run

typecheck: dev
	@$(MYPY)

format: dev  ## put the code in order
	@$(DEV) -m ruff check --fix-only .
	@$(DEV) -m ruff format .

lock:  ## compile requirements/*.in (ARGS=--upgrade for newer versions)
	@$(PYTHON) tools/lock.py $(ARGS)

clean:  ## remove caches and what the tests left
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache test-artifacts
	@find . -name __pycache__ -not -path './.venvs/*' -not -path './node_modules/*' -prune -exec rm -rf {} +

clean-all: clean  ## and what was installed; your data in var/ stays
	@rm -rf .venvs node_modules static/vendor
