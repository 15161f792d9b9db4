# make run   executes the whole workbook on small data, into runs/<time>/
# make test  checks everything: style, tests, every notebook
# make newest the same as run, with the newest packages in place of the pinned ones, in .venv-newest
# make colab rebuilds Colab's environment and tries the notebooks in it; COLAB_PYTHON names a 3.13
# All create .venv and install into it first, when something changed. PYTHON names another Python.
# pip need not compile what nobody imports (--no-compile): Python does that at the first import.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
REQUIREMENTS ?= -r requirements.txt

.PHONY: run test newest publish bench colab

run: $(VENV)/installed
	@echo "== Running every notebook (smoke profile, four to eight minutes) =="
	@$(BIN)/python -m cvlab run --profile smoke --jobs 2 $(if $(OUT),--out $(OUT))

newest:
	@$(RM) .venv-newest/installed
	@$(MAKE) run VENV=.venv-newest OUT=runs/newest \
		REQUIREMENTS="--upgrade --upgrade-strategy eager -e '.[tools]'"

test: $(VENV)/tested
	@echo "== Style =="
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "== Tests, two at a time =="
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not alone"
	@echo "== What takes times or all cores, alone =="
	@$(BIN)/python -m pytest -m alone

publish: $(VENV)/installed
	@echo "== Running every notebook on real data (class profile) and publishing it =="
	@$(BIN)/python -m cvlab run --profile class --out runs/publish
	@$(BIN)/python -m cvlab publish runs/publish && $(BIN)/python -m cvlab results

bench: $(VENV)/installed
	@echo "== Our ways beside the usual ones (about 20 minutes, alone on the machine) =="
	@$(INSTALL) -e '.[openvino]'
	@$(BIN)/python -m cvlab bench --out data/results/bench.json && $(BIN)/python -m cvlab results

colab: $(VENV)/tested
	@echo "== The notebooks in an environment like Colab's (some 10 minutes, alone on the machine) =="
	@$(BIN)/python tests/colab.py $(if $(COLAB_PYTHON),--python $(COLAB_PYTHON))

$(VENV)/installed: requirements.txt pyproject.toml
	@echo "== Installing into $(VENV) (some minutes the first time) =="
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make run PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) $(REQUIREMENTS)
	@touch $@

$(VENV)/tested: $(VENV)/installed
	@echo "== Installing what checks need =="
	@$(INSTALL) -e '.[dev]'
	@touch $@
