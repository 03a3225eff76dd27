# The whole lab from an empty machine: Python 3.11 or newer and a C++ compiler are all that must be there.
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= quick
BIN := $(VENV)/bin
READY := $(VENV)/.ready
.DEFAULT_GOAL := help
.PHONY: help install reproduce test test-all test-browser soak peers lab book lint reference resume-reference readme clean

help: ## show this list
	@echo "SwarmKV Lab: the first make of a target below also makes $(VENV) and compiles llama.cpp, a few minutes, once."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## set up $(VENV) alone, and compile llama.cpp: for those who want to ask first

reproduce: $(READY) ## run the article's experiment on this machine, in minutes, with its figures and notebooks (PROFILE=full: 3,501 tokens)
	$(BIN)/swarmkv-lab reproduce --profile $(PROFILE)

# A worker per core, each with one thread of llama.cpp. The model is fetched before they all ask for it at once.
PYTEST = $(BIN)/python -c 'import swarmkv_lab as lab; lab.model_path()' && $(BIN)/python -m pytest -n auto --dist worksteal

test: $(READY) lint ## check style and types, and test each fact once on the smallest model that shows it, in minutes
	$(PYTEST)

test-all: $(READY) lint ## run every test but the browser's: also larger cases, peers (after make peers) and long counts
	SWARMKV_SOAK=1 $(PYTEST) -m 'not browser'

test-browser: $(VENV)/.browser ## drive JupyterLab and the book with Chromium; screenshots go to artifacts/
	$(BIN)/python -m pytest -m browser

soak: $(READY) ## repeat what chance may break thousands of times (flipped bytes, killed writers); make test does a tenth
	SWARMKV_SOAK=1 $(BIN)/python -m pytest -s -m soak

peers: $(READY) ## compile llama-server of the same sources, once, for swarmkv-lab bench --peers server_warm and others
	$(BIN)/python -c 'from swarmkv_studies.peers.build import build; print(build())'

# Jupyter refuses to run as root, which is who everybody is in a container. At the level ERROR it still prints the
# address, and nothing after it.
JUPYTER = --log-level=ERROR
ifeq ($(shell id -u),0)
JUPYTER += --allow-root
SAY_ROOT = @echo "You are root, as in a container: Jupyter is started with --allow-root."
endif

lab: $(READY) ## open copies of the notebooks (my_notebooks/) in JupyterLab, on this machine alone; the last line is its address
	@mkdir -p my_notebooks; for each in notebooks/*.ipynb; do [ -e my_$$each ] || cp $$each my_$$each; done
	$(SAY_ROOT)
	$(BIN)/jupyter lab --ip=127.0.0.1 --ServerApp.root_dir=$(CURDIR) --LabApp.default_url=/lab/tree/my_notebooks/00_tour.ipynb \
		$(JUPYTER)

book: $(VENV)/.book ## build a web site of the notebooks as they are committed, all figures and the package's names; nothing is run
	$(BIN)/sphinx-build -E -W --keep-going -n -q -c book . artifacts/book
	@echo "Open artifacts/book/index.html in a browser."

lint: $(READY) ## check style, the direction of imports, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# It holds no times. To measure another again, remove it: make resume-reference.
STAYS := data/reference/architectures.csv

reference: $(VENV)/.reference ## for maintainers: measure in full and replace what the repository shows, in three to four hours
	rm -f $(filter-out $(STAYS),$(wildcard data/reference/*.*))
	$(MAKE) resume-reference

resume-reference: $(VENV)/.reference ## for maintainers: go on with make reference after an interrupt
	$(BIN)/swarmkv-lab reproduce --profile full --reference
	$(MAKE) readme

readme: $(READY) ## for maintainers: draw the figures from data/, and write its numbers into README.md
	$(BIN)/python -m swarmkv_studies.book.gallery
	$(BIN)/python -m swarmkv_studies.book.readme

# Compiling llama.cpp takes a few minutes, once; CMAKE_ARGS reaches it (README: a GPU).
$(READY): pyproject.toml install.py llama.cmake
	@command -v $(PYTHON) >/dev/null || { echo "swarmkv-lab needs Python 3.11 or newer as $(PYTHON); set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "swarmkv-lab needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V); set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
		|| { echo "llama-cpp-python is compiled here and needs a C++ compiler (g++ or clang++); or set CXX=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python install.py test
	@touch $@

$(VENV)/.book $(VENV)/.browser: $(VENV)/.%: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

# All peers, and llama.cpp compiled once more: its programs.
$(VENV)/.reference: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[test,peers]'
	$(BIN)/python -c 'from swarmkv_studies.peers.build import build; print(build())'
	@touch $@

clean: ## remove the environment; the model stays in the user's cache folder
	rm -rf $(VENV)
