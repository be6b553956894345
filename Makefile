# On a machine with Python >= 3.11 and make, these two do everything: make train, make test.
PYTHON = python3
VENV = .venv
CONFIG = configs/fcn8s.py
# Extras of pyproject.toml to install beside the base: cuda12, cuda13, tpu or plan.
EXTRAS =
# More arguments for train.py or pytest: make train ARGS="--workdir runs/first"
ARGS =

# Memory in huge pages, where Linux has them to give: a step on CPUs takes tens of megabytes anew, page by page else.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

comma = ,
bin = $(VENV)/bin
# A stamp stands only where everything was installed: by this Python, with these extras and these pins.
base_stamp = $(VENV)/.installed-$(notdir $(PYTHON))-base$(EXTRAS:%=-%)
dev_stamp = $(VENV)/.installed-$(notdir $(PYTHON))-dev$(EXTRAS:%=-%)

.PHONY: help train test lint pod-check pod-check-compiled constraints peers clean

help:
	@echo "make train         set up $(VENV) and train:  train.py --config $(CONFIG) $(ARGS)"
	@echo "make test          set up $(VENV) and run the tests"
	@echo "make lint          ruff and pyright"
	@echo "make pod-check     compile every net's training step for a TPU slice, v5e:4x4; resumes where it was stopped"
	@echo "make constraints   pin the newest dependencies that fit (constraints.txt)"
	@echo "make peers         set up .venv-peers: PyTorch and ONNX Runtime, for benchmarks/ to be compared with"
	@echo "make clean         remove $(VENV)"
	@echo "Variables: PYTHON=python3.12  VENV=.venv-other  EXTRAS=cuda12  CONFIG=configs/fcn8s.py:folder  ARGS=…"

train: $(base_stamp)
	@$(bin)/python train.py --config $(CONFIG) $(ARGS)

test: $(dev_stamp)
	@$(bin)/python -m pytest $(ARGS)

pod-check:
	@$(MAKE) --no-print-directory EXTRAS=plan pod-check-compiled

pod-check-compiled: $(base_stamp)
	@JAX_PLATFORMS=cpu $(bin)/python tools/pod_check.py $(ARGS)

lint: $(dev_stamp)
	@$(bin)/ruff check
	@$(bin)/ruff format --check
	@$(bin)/pyright

# The folder is made anew where another Python made it, and where .installing tells of an installation that was cut short:
# that may have left half a package which pip takes for a whole one. $(1): what to install, $(2): the stamps it earns.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fcn_jax needs Python 3.11 or newer, and \
	'$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true). Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@if [ -e $(VENV) ] && ! [ -e $(VENV)/.installing ] && ! [ -e $(VENV)/pyvenv.cfg ]; then \
	  echo "'$(VENV)' is there and no virtual environment: name another one, make $(MAKECMDGOALS) VENV=…"; exit 1; fi
	@if [ -e $(VENV)/.installing ] || [ "$$($(bin)/python -V 2>&1)" != "$$($(PYTHON) -V 2>&1)" ]; then rm -rf $(VENV); fi
	@echo "Installing into $(VENV): a few minutes the first time."
	@mkdir -p $(VENV) && touch $(VENV)/.installing && rm -f $(VENV)/.installed-*
	@$(PYTHON) -m venv $(VENV)
	@$(bin)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable "$(1)"
	@rm $(VENV)/.installing && touch $(2)
endef

$(base_stamp): pyproject.toml constraints.txt
	$(call install,.$(EXTRAS:%=[%]),$(base_stamp))

$(dev_stamp): pyproject.toml constraints.txt
	$(call install,.[dev$(EXTRAS:%=$(comma)%)],$(base_stamp) $(dev_stamp))

constraints: $(dev_stamp)
	@$(bin)/python -m pip install -qq --disable-pip-version-check uv
	@echo "# Made by 'make constraints': the newest versions that fit pyproject.toml, for every Python from 3.11 on." > $@.new
	@$(bin)/uv pip compile --quiet --universal --no-header --no-annotate --python-version 3.11 --extra dev --extra plan \
	  pyproject.toml >> $@.new
	@mv $@.new constraints.txt

# PyTorch, for CPUs, and ONNX Runtime live apart: they share no version with us but that of the decoder. Where pip's own
# index gives PyTorch for GPUs, PIP_EXTRA_INDEX_URL names one for CPUs, which is smaller and as fast on them.
PEERS_PYTHON = python3.11
peers_stamp = .venv-peers/.installed

peers: $(peers_stamp)

$(peers_stamp): benchmarks/peers.txt
	@rm -rf .venv-peers
	@$(PEERS_PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install -qq --disable-pip-version-check --requirement benchmarks/peers.txt
	@touch $@

clean:
	rm -rf $(VENV)
