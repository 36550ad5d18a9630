# Everything runs inside .venv, which is built from requirements.txt on first use, bytecode included: without it every
# process would compile some 2,500 modules anew where PYTHONDONTWRITEBYTECODE is set.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-random demo-corruptions demo-all demo-tuned demo-bias rates snapshot test test-slurm test-slurm-demo test-faults bench gpu latex-check lint requirements

.venv/ready: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --no-deps --compile-bytecode -r requirements.txt
	$(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

demo: .venv/ready  ## seven methods on five tasks of real images, then the table
	$(BIN)/sctbench run suites/experiments/demo.yaml
	$(BIN)/sctbench report --suite demo

demo-random: .venv/ready  ## the same model at random initialisation beside it
	$(BIN)/sctbench run suites/experiments/demo_random_weights.yaml
	$(BIN)/sctbench report --suite demo

demo-corruptions: .venv/ready  ## three methods on corrupted photographs, and the table of how much of their accuracy is left
	$(BIN)/sctbench run suites/experiments/demo_corruptions.yaml
	$(BIN)/sctbench report --suite demo+corruptions

demo-all: .venv/ready  ## every registered method on one small task
	$(BIN)/sctbench run --suite demo --tasks digits --methods all --out results/demo-all
	$(BIN)/sctbench report --out results/demo-all

rates: .venv/ready  ## one grid of learning rates for every method, scored on val: what default rates are chosen by
	for lr in 1e-3 2e-3 5e-3 1e-2 2e-2 5e-2; do $(BIN)/sctbench run --suite demo --tasks digits,photo_crops \
		--protocol validation --methods all --recipe lr=$$lr,epochs=7 --out results/rates || exit 1; done
	$(BIN)/sctbench report --out results/rates --ablation lr

demo-tuned: .venv/ready  ## three methods, eight trials each per task on val, two seeds of the winners
	$(BIN)/sctbench run suites/experiments/demo_tuned.yaml
	$(BIN)/sctbench report --suite demo

demo-bias: demo  ## the demo once more, looking at test after every epoch, and what reporting the best epoch gains
	$(BIN)/sctbench run suites/experiments/demo.yaml --protocol oracle
	$(BIN)/sctbench bias --suite demo

snapshot: demo demo-random demo-corruptions  ## put what these gave into results/demo, where the README shows it
	mkdir -p results/demo
	cd results/report/demo-fixed-demo_vit-pretrained-56px && cp tasks.* significance.md images.md pretrained_minus_random.md \
		accuracy_parameters.png critical_difference.png runs.csv ../../demo/
	cp results/report/demo+corruptions-fixed-demo_vit-pretrained-56px/corruptions.* results/demo/

test: .venv/ready  ## on all cores, see tests/conftest.py
	$(BIN)/python -m pytest -n auto --no-loadscope-reorder --durations 20 -m "not slurm and not slurm_demo"

test-slurm: .venv/ready  ## on a real SLURM cluster of this machine's own; as root, it installs Debian packages
	$(BIN)/python -m pytest -n 0 -m slurm tests/slurm

test-slurm-demo: .venv/ready  ## the demo suite, 70 runs, on that cluster and without it: the same records and table
	$(BIN)/python -m pytest -n 0 -m slurm_demo tests/slurm

bench: .venv/ready  ## ours beside the released way, on this machine
	$(BIN)/sctbench bench

gpu:  ## one check on a CUDA device with the python3 that is there: what is measured lands in OUT as soon as it is known
	python3 tests/gpu/check.py --out $(OUT) --seconds 540

test-faults: .venv/ready  ## kill 200 runs, damage files, fill disks, and compare every record with an undisturbed one
	$(BIN)/python -m tests.faults.campaign --kills 200

latex-check: .venv/ready  ## compile every table with a real pdflatex; installs it on Debian when it is missing
	command -v pdflatex || (apt-get update -qq && apt-get install -y -qq --no-install-recommends texlive-latex-base \
		texlive-latex-extra)
	$(BIN)/python -m pytest tests/analysis/test_renderers.py -k latex

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

requirements: .venv/ready  ## pin the newest versions that pyproject.toml allows in requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra demo --extra track --extra datasets \
		--extra energy --extra dev --no-header --no-annotate --upgrade pyproject.toml -o requirements.txt
