# Every target but comfyui makes .venv first when it is missing or older than pyproject.toml.
#   PYTHON  an interpreter >= 3.10; default: the first of python3.11, 3.12, 3.13, 3.10 and python3
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

# One thread per worker: two workers use two cores. Skipped tests and the reasons are printed last.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .

# Start ComfyUI with the pack: the one of COMFYUI_PATH, the one around this folder, or comfy-cli's (installed if missing).
comfyui:
	@$(FIND_PYTHON); $$python -m trainers comfyui --port $(PORT)
