# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash
.DEFAULT_GOAL := help

# A BOP folder, or one image (then MESHES names its meshes); empty: the sample that ships with the package.
DATA ?=
MESHES ?=
# Of the preview: a folder of meshes.
MODELS ?= sample/models
# Further words for pytest, for example: make test ARGS="-k images -x"
ARGS ?=

# A program must not outlive a make that was killed.
bound := $(if $(shell command -v setpriv),setpriv --pdeathsig TERM)
in_env := source .venv/setup.bash &&

.PHONY: help env demo test lint format preview docs links lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-8s %s\n", $$1, $$2 }'

env: ## make .venv with ROS 2, torch and this package (the first time takes minutes, later nothing)
	@exec $(bound) bash scripts/make_env.sh

demo: env ## segment real photos through the ROS 2 node; results in demo_out/ (DATA=<BOP folder or image>)
	@$(in_env) exec $(bound) python scripts/demo.py $(if $(DATA),"$(DATA)") $(if $(MESHES),--mesh $(MESHES))

test: env ## unit and integration tests, over real DDS (ARGS="..." goes to pytest)
	@$(in_env) exec $(bound) python -m pytest $(ARGS)

lint: env ## ruff (rules and format), mypy, import directions
	@$(in_env) status=0; for check in "ruff check ." "ruff format --check ." mypy lint-imports; do \
		echo "--- $$check"; $$check || status=1; \
	done; exit $$status

format: env ## let ruff rewrite what lint would complain about
	@$(in_env) ruff check --fix . ; $(in_env) ruff format .

preview: env ## web page to try meshes on images or a topic (MODELS=<BOP models folder>)
	@bash scripts/make_preview.sh
	@$(in_env) exec $(bound) ocdit preview --models "$(MODELS)"

docs: env ## spelling, and the documentation as HTML in docs/_build/html, warnings being errors
	@exec $(bound) bash scripts/make_docs.sh html

links: env ## ask every link of the documentation to the outside whether it is alive (takes the internet)
	@exec $(bound) bash scripts/make_docs.sh linkcheck

lock: ## write requirements/lock*.txt anew from requirements/*.in
	@python3 scripts/lock.py

clean: ## remove the environment and everything that was built
	@rm -rf .venv .venv-docs build install log dist demo_out docs/_build docs/_*.md docs/_*.rst *.egg-info
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache mutants
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
