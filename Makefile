# Two commands do everything on a fresh machine with Python >= 3.11: `make demo` and `make test`.

PYTHON ?= python3
POP := .venv/bin/pop
STAMP := .venv/.installed
UV := $(shell command -v uv 2>/dev/null)
# Of the tests: more than there are cores, since they also wait.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 4); [ $$cores -gt 2 ] && echo $$((cores * 3 / 2)) || echo 4)

.PHONY: install demo test test-peer lint bench clean lock

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "POP needs Python 3.11 or newer: install it, or say which: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
ifdef UV
	@[ -x .venv/bin/python ] || $(UV) venv -q --python $(PYTHON) .venv
	@$(UV) pip install -q --python .venv/bin/python --require-hashes -r requirements.lock -r requirements-dev.lock
	@$(UV) pip install -q --python .venv/bin/python --no-deps -e .
else
	@[ -x .venv/bin/python ] || $(PYTHON) -m venv .venv || { \
	  echo "Python's venv module is missing: apt-get install python3-venv (Debian, Ubuntu), then again"; exit 1; }
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || { \
	  echo "there is no pip in .venv: rm -r .venv; apt-get install python3-venv; then again"; exit 1; }
	@.venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock -r requirements-dev.lock
	@.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
endif
	@touch $(STAMP)

demo: $(STAMP)
	@bash examples/demo.sh

test: $(STAMP)
	@.venv/bin/python -m pytest -n $(WORKERS) --dist worksteal

# The tests against llama-cpp-python's server, which `make test` skips where it is not installed; it is built for about 5 minutes.
test-peer: $(STAMP)
	@[ -x .peer/bin/python ] || $(PYTHON) -m venv .peer
	@.peer/bin/python -c 'import llama_cpp, gguf' 2>/dev/null || \
	  .peer/bin/python -m pip install -q --disable-pip-version-check "llama-cpp-python[server]>=0.3" gguf
	@POP_TEST_LLAMA=$(CURDIR)/.peer/bin/python .venv/bin/python -m pytest tests/test_real_server.py

lint: $(STAMP)
	@.venv/bin/ruff check pop tests bench
	@.venv/bin/mypy

bench: $(STAMP)
	@.venv/bin/python -m bench

lock:  # write the locks anew; they hold hashes, and no addresses
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --group dev --constraint requirements.lock -o requirements-dev.lock

clean:
	rm -rf .venv .peer .pop .mypy_cache .ruff_cache .pytest_cache .hypothesis
