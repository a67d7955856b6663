# One virtual environment serves all targets. It is made where there is none, and brought up to date when its two inputs change.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-statistical soak fuzz bench scale docs lint format clean

demo: $(INSTALLED)
	$(BIN)/ppvae demo

# One thread a worker: two workers that each take every core slow each other down.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m "not statistical and not soak"

# Fresh seeds each time. A test looks again with ten times the draws before it alarms, so that a sound tree fails less than once in a
# thousand runs; PPVAE_TEST_SEED=... repeats a run.
test-statistical: $(INSTALLED)
	@seed=$${PPVAE_TEST_SEED:-$$(date +%s)}; echo "PPVAE_TEST_SEED=$$seed"; \
	PPVAE_TEST_SEED=$$seed OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m statistical

# Minutes each: a file of 2 GB, the commands in several processes, 500 kills, a million particles.
soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m soak

# Readers of foreign bytes under mutated input: by atheris where it has a wheel for this Python, else by hypothesis, which is said.
FUZZ_SECONDS ?= 600
fuzz: $(INSTALLED)
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/python -m pip install --quiet --only-binary :all: atheris || \
	echo "atheris has no wheel for this Python"
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz $(FUZZ_SECONDS)

# Wants a quiet machine and half an hour; makes environments for NumPyro and Pythae under .bench/, and writes its table into the document.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks --write docs/benchmarks.md

# Wants a quiet machine and five minutes; writes its numbers into the document.
scale: $(INSTALLED)
	$(BIN)/python -m benchmarks.scaling --write docs/scale.md

# The pages of docs/ and the reference from the docstrings, into site/. Nothing is fetched when they are built or read.
docs: $(INSTALLED)
	test -x $(BIN)/mkdocs || $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/drawings.py
	$(BIN)/python docs/command_tables.py
	$(BIN)/mkdocs build --strict --quiet

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Keeps .venv and runs/: the one takes minutes to make again, the other cannot be.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./.bench -prune -o -path ./runs -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@
