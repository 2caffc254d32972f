# Two commands do nearly everything: make report, make test. Each sets up what is missing first.
#
#   make report PROFILE=smoke       another size of run: smoke, quick, full; auto picks by device
#   make report VENV=../venv        an environment that several clones share
#   make report PYTHON=/opt/py/bin/python3.12
#   make test ARGS="-p no:randomly" what goes to pytest: here, the tests in the order of the files

VENV    ?= .venv
PROFILE ?= auto
PYTHON  ?= python3.13 python3.12 python3.11 python3

VENV_PYTHON := $(abspath $(VENV))/bin/python
INSTALLED   := $(VENV)/requirements.txt
CHECKOUT    := $(VENV)/lab5-checkout.txt

# A process per core, in random order: its seed is printed, and ARGS=--randomly-seed=… gives that order again.
PYTEST = "$(VENV_PYTHON)" -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help report test test-all bench lab lint pretrained clean distclean setup

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-20s%s\n", $$1, $$2}'

report: setup  ## run the notebooks, export them, write report/index.html
	@"$(VENV_PYTHON)" -m lab5 report --profile $(PROFILE)

test: setup  ## run the tests, but for the slow ones
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: setup  ## run all tests
	@$(PYTEST) $(ARGS)

bench: setup  ## measure beside a plain implementation, about a quarter of an hour
	@"$(VENV_PYTHON)" -m bench

# The first folder of JUPYTER_PATH wins over a kernel named python3 in the home folder.
lab: setup  ## open the notebooks in JupyterLab, with the kernel of this environment
	@JUPYTER_PATH="$(abspath $(VENV))/share/jupyter" JUPYTER_CONFIG_PATH="$(CURDIR)/notebooks/.jupyter" \
	    PYTHONPATH="$(CURDIR)" "$(VENV_PYTHON)" -m jupyterlab notebooks --LabApp.default_url=/lab/tree/README.md

lint: setup  ## check the style with ruff
	@"$(VENV_PYTHON)" -m ruff check .

# First a transformer of tokens alone, then the same one with hints; training.json records settings and results.
pretrained: setup  ## train the committed weights again
	@"$(VENV_PYTHON)" -m lab5 train --stage all --profile pretrained --set transformer.hints=0 --out data/pretrained
	@"$(VENV_PYTHON)" -m lab5 train --stage transformer --profile pretrained \
	    --set stage2.start=data/pretrained/transformer.safetensors --set stage2.steps=3600 --set stage2.lr=0.0008 \
	    --out data/pretrained

clean:  ## remove what runs wrote: the report, figures, caches, checkpoints
	test ! -d report || find report -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	rm -rf data/runs data/cache build lab5.egg-info .pytest_cache .ruff_cache .hypothesis
	test ! -e .git || git clean -fdXq figures
	find lab5 tests bench -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## also remove the environment
	rm -rf "$(VENV)"

# What was installed is remembered in the environment: set-up happens once, and again when the lists change, or when
# the environment is shared with another clone, to which its `import lab5` then leads.
setup:
	@if [ -x "$(VENV_PYTHON)" ] && cmp -s requirements.txt "$(INSTALLED)"; then exit 0; fi; \
	if ! "$(VENV_PYTHON)" -m pip --version >/dev/null 2>&1; then \
	    for python in $(PYTHON); do \
	        if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	        then found="$$python"; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "No Python 3.11 or newer (with venv) works among: $(PYTHON)." \
	             "Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; \
	    fi; \
	    echo "Setting up $(VENV) with $$("$$found" --version): about 5 GB and a few minutes, once."; \
	    "$$found" -m venv "$(VENV)"; \
	fi && \
	"$(VENV_PYTHON)" -m pip install --quiet --disable-pip-version-check -r requirements.txt && \
	cp requirements.txt "$(INSTALLED)" || \
	{ echo "Setting up $(VENV) failed, see above; make tries again from where it stopped." >&2; exit 1; }
	@if { echo "$(CURDIR)"; cat pyproject.toml; } | cmp -s - "$(CHECKOUT)"; then exit 0; fi; \
	"$(VENV_PYTHON)" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . && \
	{ echo "$(CURDIR)"; cat pyproject.toml; } > "$(CHECKOUT)" || \
	{ echo "Installing lab5 of this folder into $(VENV) failed, see above; make tries again." >&2; exit 1; }
