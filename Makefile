# make chat    compare stock SGLang with SGLang on virtual tensors (does the set-up first)
# make test    all tests (does the set-up first)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What the tests and benchmarks leave behind stays below this folder.
export XDG_CACHE_HOME ?= $(CURDIR)/.cache
export TRITON_CACHE_DIR ?= $(CURDIR)/.cache/triton
export PRE_COMMIT_HOME ?= $(CURDIR)/.cache/pre-commit

.PHONY: setup chat test lint sanitize bench doctor clean
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): pyproject.toml CMakeLists.txt tools/install.py $(wildcard requirements/*.txt csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "no virtual environment could be made (Debian: apt install python3-venv)"; exit 1; }
	$(BIN)/python tools/install.py
	@touch $@

# CHAT="--clients 1 --dialogues FILE": options of `vt-sglang chat`.
chat: $(READY)
	$(BIN)/vt-sglang chat $(CHAT)

# TEST="tests/core -k tree": options of pytest. JOBS: processes at once; each may hold a server of some GiB.
JOBS ?= 2
test: $(READY)
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TEST)

lint: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

# The core's tests once more, under AddressSanitizer and UndefinedBehaviorSanitizer; those with threads under
# ThreadSanitizer, too.
sanitize: $(READY)
	$(BIN)/python tools/sanitize.py

bench: $(READY)
	SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1 $(BIN)/python bench/tree.py --json report/tree.json

doctor: $(READY)
	$(BIN)/vt-sglang doctor

clean:
	rm -rf $(VENV) .cache build report .mypy_cache .pytest_cache .ruff_cache .hypothesis
