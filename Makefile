# Every target but comfyui makes .venv first if it is not there.
#   PYTHON  an interpreter >= 3.10; found by itself when not given
#   TORCH   what pip installs as torch; on a machine without a GPU the CPU build is far smaller:
#           make venv TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
READY := .venv/.ready
BIN := .venv/bin

PORT ?= 8188

# Sets $$python.
FIND_PYTHON = python="$(PYTHON)"; \
	for candidate in python3.11 python3.12 python3.13 python3.10 python3; do \
	  [ -n "$$python" ] && break; \
	  $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && python=$$candidate; \
	done; \
	[ -n "$$python" ] || { echo "no Python >= 3.10 with venv found; install one, or name it: make $@ PYTHON=/path/to/python"; exit 1; }

.PHONY: venv demo test lint comfyui

venv: $(READY)

$(READY): pyproject.toml
	@$(FIND_PYTHON); \
	echo "making .venv with $$($$python --version)"; \
	$$python -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/python -m trainers demo

# One thread a worker, so that two workers are two cores. Skipped tests and why are printed last.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/python -m ruff check .

# ComfyUI with the pack in it: COMFYUI_PATH, the one this folder sits in, comfy-cli's default place, or installed there.
comfyui:
	@$(FIND_PYTHON); $$python -m trainers comfyui --port $(PORT)
