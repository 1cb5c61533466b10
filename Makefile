# One environment for everything, in .venv. `make demo` is the place to start.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

export OMP_NUM_THREADS ?= 1

.PHONY: help venv try demo demo-quick demo-scenes vlm vlm-image vlm-video test test-full check release-check format clean

help:
	@echo "make try         clips of a small trained model: a minute"
	@echo "make demo        the whole path on a CPU: videos, tokenizer, two-stage training, generation, report"
	@echo "make demo-quick  the same with a quarter of the clips and steps: 5 minutes"
	@echo "make demo-scenes clips whose future is open: the paper's sampler, and refinement"
	@echo "make vlm         the mini-VLM of LLMC+ trained from scratch, and its benchmark: an hour on two cores"
	@echo "make test        the fast tests ($(WORKERS) processes: WORKERS=n)"
	@echo "make test-full   every test, slow ones too"
	@echo "make format      what ruff can apply by itself"
	@echo "make check       lint, format, types, import contract"
	@echo "make release-check   sdist and wheel, tried in clean environments: PYTHONS=\"python3.11 python3.12\""
	@echo "make clean       remove the environment and caches (runs/ stays)"

venv: $(READY)

$(READY): setup.py requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "megavrc needs Python 3.11 or newer; name one with: make PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing megavrc and what it needs into $(VENV): a few minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

try: $(READY)
	$(BIN)/python examples/try.py

demo: $(READY)
	$(BIN)/python -m megavrc demo

demo-quick: $(READY)
	$(BIN)/python -m megavrc demo --part=0.25 --out=runs/demo-quick

demo-scenes: $(READY)
	$(BIN)/python -m megavrc demo --data=scenes

vlm: $(READY)
	$(MAKE) -j2 vlm-image vlm-video
	$(BIN)/python -m megavrc compress_vlm bench --mini=runs/mini_vlm

vlm-image vlm-video: vlm-%: $(READY)
	$(BIN)/python -m megavrc pretrain_vlm --config=mini_vlm_$*

# --dist loadfile: a file's tests run in one process, so what they share is built once
test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-full: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# no part of .ci/run: an environment of its own for each Python
release-check:
	.ci/release_check.sh

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
