# One virtual environment serves all targets. It is made where there is none, and brought up to date when its two inputs change.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-examples test-statistical soak mutants fuzz bench scale experiments docs lint format clean

demo: $(INSTALLED)
	$(BIN)/ppvae demo

# Where tests write: in memory, if there is room. They wait for thousands of fsyncs otherwise, and none outlives a loss of power anyway.
TEST_TMP := $(shell [ "$$(df -k --output=avail /dev/shm 2>/dev/null | tail -1)" -gt 4000000 ] 2>/dev/null && echo /dev/shm || echo $${TMPDIR:-/tmp})

# One thread a worker: two workers that each take every core slow each other down. What is compiled once is not compiled again by each of the
# hundreds of processes that tests start.
test: $(INSTALLED)
	TMPDIR=$(TEST_TMP) PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not statistical and not soak and not example"

# Every experiment with --quick, the notebook, the longer pages of docs/ and README as their readers run them: three minutes.
test-examples: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m "example and not soak"

# Fresh seeds each time. A test looks again with ten times the draws before it alarms, so that a sound tree fails less than once in a
# thousand runs; PPVAE_TEST_SEED=... repeats a run.
test-statistical: $(INSTALLED)
	@seed=$${PPVAE_TEST_SEED:-$$(date +%s)}; echo "PPVAE_TEST_SEED=$$seed"; \
	PPVAE_TEST_SEED=$$seed OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m statistical

# Minutes each: a file of 2 GB, the commands in several processes, 500 kills, a million particles; and what repeats at length what others hold: every
# guide and prior from check to report, fifty steps through inductor for the whole zoo.
soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m soak

# Faults put into a copy of the code, one at a time: each must turn a test red. Half an hour; `python tests/mutants.py WORD` tries some.
mutants: $(INSTALLED)
	$(BIN)/python tests/mutants.py

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

# Minutes on one thread, roughly; the file that is written last; the command. The first trains the pair that others measure; the longest,
# its rivals, is the last.
define EXPERIMENTS
25 runs/cremer-2018/measured/main-test.json inference_suboptimality.py --only main --main-run runs/fashion-mnist
20 runs/known-truth/known-truth.json known_truth.py --out runs/known-truth
3 runs/pca-linear-deep/pca-linear-deep.json pca_linear_deep.py --out runs/pca-linear-deep
2 runs/autoencoder-or-vae/autoencoder-or-vae.json autoencoder_or_vae.py --out runs/autoencoder-or-vae
5 runs/beta-sweep/beta-sweep.json beta_sweep.py --out runs/beta-sweep
35 runs/latent-plane/latent-plane.json latent_plane.py --out runs/latent-plane
4 runs/attributes/attributes.json attributes.py --out runs/attributes
6 runs/blur/blur.json blur.py --out runs/blur
3 runs/lorenz/lorenz.json lorenz.py --out runs/lorenz
6 runs/price-of-amortization/price-of-amortization.json price_of_amortization.py --out runs/price-of-amortization
8 runs/text/text.json text.py --out runs/text
16 runs/music/music.json music.py --out runs/music
3 runs/counts/counts.json counts.py --out runs/counts
2 runs/augmentation/augmentation.json augmentation.py --out runs/augmentation
5 runs/disentanglement/disentanglement.json disentanglement.py --out runs/disentanglement
2 runs/rate-distortion/rate-distortion.json rate_distortion.py --out runs/rate-distortion
3 runs/elbo-surgery/elbo-surgery.json elbo_surgery.py --out runs/elbo-surgery
10 runs/bounds/bounds.json bounds.py --out runs/bounds
5 runs/pictures/digits/pictures.json pictures.py --data digits
20 runs/pictures/fashion-mnist/pictures.json pictures.py --data fashion-mnist
15 runs/importance-weighted/digits/importance-weighted.json importance_weighted.py --data digits
60 runs/importance-weighted/fashion-mnist/importance-weighted.json importance_weighted.py --data fashion-mnist
15 runs/annealing/overfitted.json annealing.py
30 runs/estimators/gaps.json estimators.py --out runs/estimators
15 runs/refined-guides/refined-guides.json refined_guides.py --out runs/refined-guides
95 runs/cremer-2018/measured/flow-guide-test.json inference_suboptimality.py --main-run runs/fashion-mnist
endef
export EXPERIMENTS

# Every example in full, one after the other. What has its result file is skipped: called again, it goes on where it ended.
experiments: $(INSTALLED)
	@echo "$$EXPERIMENTS" | { all=0; left=0; sum=0; lines=; while read -r minutes result command; do \
		all=$$((all + 1)); test -e "$$result" && continue; left=$$((left + 1)); sum=$$((sum + minutes)); \
		lines="$$lines$$(printf '%5d min  %s' "$$minutes" "$$command")|"; done; \
		echo "$$left of $$all experiments are left, about $$sum minutes on one thread"; printf '%s' "$$lines" | tr '|' '\n'; }
	@echo "$$EXPERIMENTS" | while read -r minutes result command; do \
		test -e "$$result" && continue; echo "== $$command"; \
		OMP_NUM_THREADS=1 $(BIN)/python examples/$$command < /dev/null || exit 1; done

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
