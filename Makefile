# The whole lab from an empty machine: Python 3.11 or newer and a C++ compiler are all that must be there.
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= quick
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The library for images and sound is not used here, and takes a part of the compilation.
export CMAKE_ARGS := -DLLAVA_BUILD=OFF $(CMAKE_ARGS)

.PHONY: reproduce test test-all test-browser soak peers lab dashboard reference resume-reference lint clean help

reproduce: $(READY) ## the article's experiment on this machine, the figures and the notebooks (PROFILE=full for 3,501 tokens)
	$(BIN)/swarmkv-lab reproduce --profile $(PROFILE)

# A worker per core, each with one thread of llama.cpp. The model is fetched before they all ask for it at once.
PYTEST = $(BIN)/swarmkv-lab model && $(BIN)/python -m pytest -n auto --dist worksteal

test: $(READY) lint ## what every change is checked with, in minutes: each fact once, on the smallest model that shows it
	$(PYTEST)

test-all: $(READY) lint ## every test but the browser's: also larger cases, peers (make peers) and long counts
	SWARMKV_SOAK=1 $(PYTEST) -m 'not browser'

test-browser: $(VENV)/.browser ## JupyterLab and the dashboard, driven in Chromium; screenshots in artifacts/
	$(BIN)/python -m pytest -m browser

soak: $(READY) ## thousands of flipped bytes, killed writers, failing agents and whole cycles; make test does a tenth
	SWARMKV_SOAK=1 $(BIN)/python -m pytest -s -m soak

peers: $(READY) ## compile llama-server of the same sources (a few minutes, once), for bench --peers server_warm and others
	$(BIN)/python -c 'from swarmkv_lab.peers.build import build; print(build())'

lab: $(READY) ## JupyterLab on loopback, with its token; it opens copies of the notebooks, in work/
	$(BIN)/swarmkv-lab notebooks
	$(BIN)/jupyter lab --ip=127.0.0.1 --ServerApp.root_dir=$(CURDIR) --LabApp.default_url=/lab/tree/work/00_tour.ipynb

dashboard: $(VENV)/.dashboard ## the notebooks as web pages, with their outputs, and live explorers; on loopback, with a token
	$(BIN)/swarmkv-lab dashboard

lint: $(READY) ## style, the direction of imports, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

reference: $(READY) ## for maintainers: measure in full and replace what the repository shows
	rm -f data/reference/*.csv data/reference/*.json
	$(MAKE) resume-reference

resume-reference: $(READY) ## go on with it after an interrupt
	$(BIN)/swarmkv-lab reproduce --profile full --reference

# Compiling llama.cpp takes a few minutes, once; CMAKE_ARGS reaches it (README: a GPU).
$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "swarmkv-lab needs Python 3.11 or newer as $(PYTHON); set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "swarmkv-lab needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V); set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
		|| { echo "llama-cpp-python is compiled here and needs a C++ compiler (g++ or clang++); or set CXX=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.dashboard $(VENV)/.browser: $(VENV)/.%: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

clean: ## remove the environment; the model stays in the user's cache folder
	rm -rf $(VENV)

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' $(MAKEFILE_LIST)
