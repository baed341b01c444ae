# make demo   runs the main job: checks, a gradient study, a trained VAE, one page (runs/tour/index.html)
# make test   passes the tests
# Both create a private environment in .venv on first use, and reuse it. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
here := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd)
python := cd "$(here)" && .venv/bin/python

.PHONY: demo test slow long mutants lint bench lock environment clean

demo: environment
	@$(python) -m vbjax.cli tour

test: environment
	@$(python) -m pytest -n 2 --dist loadfile

slow: environment
	@$(python) -m pytest -n 2 --dist loadfile --durations=25 -m "slow and not long"

long: environment
	@$(python) -m pytest -n 2 --dist loadfile -m long

# Plants wrong formulas one after the other in a copy of the package; each must turn a check or a test red.
mutants: environment
	@$(python) -m tests.mutants

lint: environment
	@$(python) -m ruff check . && .venv/bin/python -m ruff format --check . && .venv/bin/pyrefly check && .venv/bin/lint-imports

bench: environment
	@$(python) benchmarks/vae_training.py && .venv/bin/python benchmarks/replication.py && .venv/bin/python benchmarks/start_up.py && \
	.venv/bin/python benchmarks/convolution.py && .venv/bin/python benchmarks/em.py

# The stamp is written last and holds all that the environment depends on: an interrupted or outdated one is redone.
environment:
	@cd "$(here)" && { pwd; $(PYTHON) --version; cat requirements.lock pyproject.toml; } > .stamp.$$$$ 2>&1; \
	if cmp -s .stamp.$$$$ .venv/stamp; then rm .stamp.$$$$; exit 0; fi; \
	trap 'rm -f .stamp.$$$$' EXIT; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "vbjax needs Python 3.11 or later; this is: $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) lacks the venv module; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }; \
	echo "Installing into $(here)/.venv, about a minute ..." && \
	$(PYTHON) -m venv --clear .venv && \
	.venv/bin/python -m pip --disable-pip-version-check install --quiet --use-pep517 --no-deps --require-hashes -r requirements.lock && \
	.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e . && \
	cp .stamp.$$$$ .venv/stamp

# For maintainers: pins for every supported Python in one file, hashed, without addresses. Needs uv.
lock:
	@cd "$(here)" && uv pip compile --quiet --universal --python-version 3.11 --extra dev \
	  --generate-hashes --no-header --no-annotate pyproject.toml -o requirements.lock

clean:
	@cd "$(here)" && rm -rf .venv .jax_cache .pytest_cache .ruff_cache .hypothesis
