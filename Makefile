# `make train` and `make test` are all that a fresh clone needs; both set up .venv on first use.
.PHONY: setup train test test-slow lint docs fuzz learn downstream bench bench-compare wheel clean
PYTHON ?= python3
JOBS ?= $(shell nproc)
SECONDS ?= 60
sources := pyproject.toml kernels/pyproject.toml kernels/CMakeLists.txt constraints.txt tools/setup CMakeLists.txt \
    $(shell find csrc kernels/csrc -type f)

setup: .venv/.complete

.venv/.complete: $(sources)
	@PYTHON=$(PYTHON) tools/setup
	@touch $@

train: setup  ## train on the demo data; ARGS are options of vologan_fast.train
	.venv/bin/python -m vologan_fast.train $(ARGS)

test: setup  ## the default test suite, without what is slow; ARGS are options of pytest, JOBS=0 runs it in one process
	.venv/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-slow: setup  ## what takes long and rarely tells anything: the tests marked slow
	.venv/bin/python -m pytest -n $(JOBS) --dist worksteal -m "slow and not gpu" $(ARGS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	find csrc kernels/csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' | xargs .venv/bin/clang-format --dry-run -Werror

docs: setup  ## the site, into build/site; dead links and dead anchors are errors
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict  # not with --quiet, which hides the warnings from --strict

fuzz: setup  ## mutated depth files, then JPEGs, under sanitisers; SECONDS each; SEED repeats a run
	@tools/fuzz $(SECONDS) $(SEED)

learn: setup  ## does the demo preset learn to translate? three seeds, about fourteen minutes on two cores
	.venv/bin/python bench/learn.py $(ARGS)

downstream: setup  ## does a translation help the network that is trained on it? RUN is a trained run; five minutes on two cores
	.venv/bin/python bench/downstream.py $(RUN) $(ARGS)

bench: setup  ## decoder, loader, translate, kernels and training step beside their peers; about ten minutes
	.venv/bin/python -m pytest bench $(ARGS)

bench-compare: setup  ## benchmarks of the commit BASE beside those of HEAD; ARGS are paths and options of pytest
	.venv/bin/python bench/compare.py $(if $(BASE),$(BASE),$(error BASE=COMMIT is missing)) \
	    $(if $(THRESHOLD),--threshold $(THRESHOLD)) $(if $(ROUNDS),--rounds $(ROUNDS)) -- $(ARGS)

wheel: setup  ## dist/*.whl: the kernels, and the rest with its native parts
	.venv/bin/python -m pip install --quiet --constraint constraints.txt build
	PATH="$$PWD/.venv/bin:$$PATH" .venv/bin/python -m build --wheel --no-isolation --outdir dist kernels
	PATH="$$PWD/.venv/bin:$$PATH" .venv/bin/python -m build --wheel --no-isolation

clean:
	rm -rf .venv build kernels/build dist
