# Every target does its own set-up. "make" alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

READY := .venv/made
TIERS ?= unit functional lab openstack

.PHONY: help venv test test-openstack lint demo bench bench-suspend bench-openstack soak image docs lock clean python

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 16 | sed 's/^/  make /'

venv: $(READY) ## make .venv from the locked requirements
$(READY): requirements/test.txt
	@tools/venv

test: $(READY) ## run every tier of tests, the fast ones first (TIERS="unit functional" for some)
	@tools/test $(TIERS)

test-openstack: $(READY) ## run the tests of the OpenStack driver, also on two real clouds
	@.venv/bin/pytest tests/unit/test_servers.py tests/unit/test_serverstates.py tests/unit/test_cloud_openstack.py \
	  tests/unit/test_failover.py
	@.venv/bin/pytest tests/openstack

lint: $(READY) ## ruff, salt-lint, every SLS renders, changelog, reference
	@tools/lint

demo: python ## boot the lab, grow two nodes, run jobs, suspend and resume, step aside, shrink, draw it
	@lab/demo

bench: $(READY) ## print the table of ratios
	@bench/run

bench-suspend: $(READY) ## print the table of pause, suspend, checkpoint, snapshot and stop
	@bench/suspend_table.py

bench-openstack: $(READY) ## print the tables of a server that steps aside, and of 50 servers by our driver and by bare openstacksdk
	@.venv/bin/python -B bench/openstack_actions.py
	@.venv/bin/python -B bench/openstack_table.py

soak: $(READY) ## live through an hour at random (SEED=) in some minutes, then 20 minutes (MINUTES=) in the lab; all must agree
	@.venv/bin/pytest -s tests/unit/soak.py
	@.venv/bin/pytest -s tests/lab/soak.py

image: python ## build the golden image
	@lab/lab image

docs: $(READY) ## write docs/reference from the docstrings
	@.venv/bin/python tools/reference.py

lock: python ## resolve the requirements again, to the newest versions that fit
	@python3 -m venv build/lock
	@build/lock/bin/pip install --quiet uv
	@tools/lock build/lock/bin/uv

clean: ## remove what make made here (the lab has its own: lab/lab down, lab/lab clean)
	@rm -rf .venv build dist saltmarsh.egg-info .pytest_cache .ruff_cache .hypothesis

python:
	@command -v python3 >/dev/null || tools/install python3 python3-venv
