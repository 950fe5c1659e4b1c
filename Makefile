# `make` lists what there is to make.  Everything runs in .venv, which the first call fills and later calls leave alone
# until setup.cfg or pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := .build
API := http://127.0.0.1:8440/v1

TRIAL := $(BIN)/trial --temp-directory=$(BUILD)/trial
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# An environment holds absolute paths: in a tree that was moved or copied it would run the old tree's code.
ifneq ($(realpath $(CURDIR)),$(realpath $(shell cat $(VENV)/made-for 2>/dev/null)))
$(VENV)/made-for: always
endif

.DEFAULT_GOAL := help
.PHONY: help run demo test programs lint format coverage bench news clean always

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=… selects the interpreter of a new environment (now: $(PYTHON))."

run: $(VENV)/installed ## run the daemon in the foreground; Ctrl-C stops it
	@echo
	@echo "ftd starts with etc/ftd.conf; Ctrl-C stops it.  In another shell:"
	@echo
	@echo "  curl -T /usr/bin/python3 $(API)/pairs/demo/checkpoint"
	@echo "  curl -s $(API)/pairs/demo-standby/checkpoints/latest | cmp - /usr/bin/python3 && echo the same"
	@echo
	@echo "  $(BIN)/ftdctl status --watch"
	@echo "  $(BIN)/ftdctl trace demo --follow"
	@echo
	@exec $(BIN)/twistd --nodaemon --pidfile= ftd --config etc/ftd.conf

demo: $(VENV)/installed-dev programs ## a VM's host is killed, and the VM goes on: both consoles side by side
	@$(BIN)/python -m demo

test: $(VENV)/installed-dev programs ## the unit tests, then the end to end tests
	@mkdir -p $(BUILD)
	@failed=0; \
	$(TRIAL) ftd || failed=1; \
	$(TRIAL) tests || failed=1; \
	exit $$failed

programs: ## QEMU and what else the tests of virtual machines run, where this is root on Debian
	@.ci/install-programs

lint: $(VENV)/installed-dev ## rules, layout and types
	@failed=0; \
	$(BIN)/ruff check || failed=1; \
	$(BIN)/ruff format --check || failed=1; \
	$(BIN)/mypy || failed=1; \
	exit $$failed

format: $(VENV)/installed-dev ## lay the code out, sort the imports
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

coverage: $(VENV)/installed-dev programs ## which lines and branches the tests reach
	@mkdir -p $(BUILD)
	@$(BIN)/coverage erase; \
	failed=0; \
	$(BIN)/coverage run $(TRIAL) ftd || failed=1; \
	$(BIN)/coverage run $(TRIAL) tests || failed=1; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report || failed=1; \
	exit $$failed

bench: $(VENV)/installed-dev programs ## how fast it is, beside the least that does the same; about ten minutes
	@mkdir -p $(BUILD)
	@$(BIN)/python -m bench --json $(BUILD)/bench.json --markdown $(BUILD)/bench.md

news: $(VENV)/installed-dev ## what the next release's section of NEWS.md would say
	$(BIN)/towncrier build --draft

clean: ## remove the environment and everything that was made
	rm -rf $(VENV) $(BUILD) build ./*.egg-info _trial_temp* .hypothesis .ruff_cache .mypy_cache .coverage .coverage.*
	rm -f twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made-for:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ftd needs Python 3.11 or later; '$(PYTHON)' is not that.  Try: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "'$(PYTHON)' lacks its venv module (Debian, Ubuntu: install python3-venv)." >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version) …"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@echo '$(CURDIR)' > $@

$(VENV)/installed: $(VENV)/made-for setup.cfg pyproject.toml
	@echo "installing ftd and what it needs into $(VENV) (half a minute) …"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing what the tests and checks need into $(VENV) (half a minute) …"
	@$(PIP) install --editable '.[dev]'
	@touch $@
