# make setup | demo | test | lint | bench | clean. Everything lives in .venv; nothing else is installed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
TORCH := 2.13.0

.PHONY: setup demo test lint bench clean
setup: .venv/complete

# A machine without an NVIDIA driver gets PyTorch's CPU build, a tenth of the size. Where pip's own index does not
# offer it, uv knows where it is.
.venv/complete: pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit("Clapboard needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	if [ "$$(uname)" != Linux ] || command -v nvidia-smi >/dev/null; then \
	    $(BIN)/pip install --quiet torch==$(TORCH); \
	else \
	    $(BIN)/pip install --quiet torch==$(TORCH)+cpu 2>/dev/null || { $(BIN)/pip install --quiet uv==0.13.9 && \
	    $(BIN)/uv pip install --python $(BIN)/python --torch-backend=cpu torch==$(TORCH); }; \
	fi
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/python cli.py demo --out demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/hadolint Dockerfile

bench: setup
	$(BIN)/python benchmarks/esc10.py --data ../shared/data/esc10

clean:
	rm -rf .venv demo dist
