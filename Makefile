# make demo | swap | test | lint | docs | check | matrix | verdicts | fix | bench: each makes what it needs in .venv first
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo swap test lint docs check matrix verdicts fix bench

demo: $(VENV)/.demo  ## tune an adapter on sample data, then predict with it and one that is shipped
	$(BIN)/peftlab tune recipes/ner-lora.yaml
	$(BIN)/peftlab predict ner-news,ner-clinic "Mayor Ilse Brandvold opened the Halden Jazz Week in Trondheim." "Took two paracetamol for a sore throat."

swap: $(VENV)/.demo  ## 2,000 shuffled rows for seven adapters of three tasks, through one base; two adapters are tuned first
	test -e adapters/ner-news/current || $(BIN)/peftlab tune recipes/ner-lora.yaml
	test -e adapters/sentiment-shop/current || $(BIN)/peftlab tune recipes/sentiment-shop.yaml
	$(BIN)/python recipes/data/mix.py mixed.jsonl
	$(BIN)/peftlab evaluate --by adapter --data mixed.jsonl

test: $(VENV)/.test  ## every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## the site, in site/: any warning stops it; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint docs test  ## all that CI runs

matrix: $(VENV)/.test  ## every method and every task on every architecture; writes docs/matrix.md
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --whole-matrix tests/methods/test_method_matrix.py tests/runtime/test_architectures.py

verdicts: $(VENV)/.test  ## 300 recipes and data sets with mistakes: check and tune say the same
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --whole-matrix tests/tuning/test_check_verdicts.py

fix: $(VENV)/.dev  ## format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test  ## scores and times side by side with plain Transformers + PEFT; needs the real data
	$(BIN)/python -m benchmarks.ner_scores
	$(BIN)/python -m benchmarks.task_scores
	$(BIN)/python -m benchmarks.tuning_speed

# pip would compile on one core; and a machine that lets Python write no bytecode would compile at every import
$(VENV)/.%: pyproject.toml constraints.txt
	@echo "Installing peftlab with its '$*' extra into $(VENV): about two minutes the first time …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -e '.[$*]' -c constraints.txt
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # templates of code among them cannot be
	@touch $@
