# make demo | make test | make check | make pins | make protos
# TORCH_INDEX=URL chooses another torch build (a CUDA one, say) than the pinned CPU build.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TORCH_INDEX ?=

.PHONY: demo test check pins protos format clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) "torch>=2.11")
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),,-c constraints.txt) -e . --group dev
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Resolves everything anew, as if nothing were installed, within what pins.in holds fast.
pins: $(STAMP)
	mkdir -p build
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --upgrade --report build/pins.json \
	  -c pins.in -e . --group dev
	$(BIN)/python -c "import json; found = json.load(open('build/pins.json'))['install']; \
	  names = {p['metadata']['name']: p['metadata']['version'].split('+')[0] for p in found}; \
	  names.pop('atoll'); print('\n'.join(f'{n}=={names[n]}' for n in sorted(names, key=str.lower)))" > build/pins.txt
	mv build/pins.txt constraints.txt

protos: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. --pyi_out=. atoll/schema/agent.proto

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
