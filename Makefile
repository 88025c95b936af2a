# Each target is a thin call of what is below; every one does the set-up it needs.
PYTHON ?= python3
RUN := .venv/bin/

# A sourced ROS or another environment must not mix with the one in .venv/.
unexport PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH ROS_DISTRO
unexport VIRTUAL_ENV _ROS_WHEELS_BOOTSTRAP_COMPLETE

.PHONY: help setup demo test test-fast test-train unit graph e2e bench benchmark lint format clean

help:
	@echo "make demo    set up if needed, then four episodes in simulation; the report lands in out/demo-*/"
	@echo "make test    set up if needed, then lint and all tests (test-fast leaves the slow ones out)"
	@echo "make test-train  adds torch, then the tests of training"
	@echo "make bench   latency and throughput on this machine"
	@echo "make benchmark  failure detectors on two simulated tasks; table and pictures land in docs/monitor/"
	@echo "make lint    ruff and the import rules      make format  ruff format"
	@echo "make setup   the set-up alone               make clean   remove everything that was made here"

setup:
	@$(PYTHON) ros_ws/bootstrap.py

demo: setup
	@$(RUN)vigil demo

lint: setup
	@$(RUN)ruff check .
	@$(RUN)ruff format --check .
	@$(RUN)lint-imports

format: setup
	@$(RUN)ruff check --fix .
	@$(RUN)ruff format .

unit graph e2e: setup
	@$(RUN)pytest tests/$@

test: lint
	@$(RUN)pytest tests/unit
	@$(RUN)pytest tests/graph
	@$(RUN)pytest tests/e2e

test-fast: lint
	@$(RUN)pytest tests/unit
	@$(RUN)pytest tests/graph
	@$(RUN)pytest tests/e2e -m "not slow"

# torch is not part of the set-up: nothing that runs on a robot needs it.
test-train: setup
	@$(RUN)python -m pip install --quiet --editable ".[train]"
	@$(RUN)pytest tests/unit/test_train_*.py tests/*/test_lerobot_*.py

bench: setup
	@for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(RUN)python $$bench || exit 1; done
	@echo "== vigil bench policy"; $(RUN)vigil bench policy

# Roll-outs of two tasks, then every detector on them: takes about two hours, goes on where it was stopped.
BENCHMARK ?= out/benchmark
SIMULATED := $(RUN)vigil evaluate franka_sim --uncalibrated --no-images --speed max

benchmark: setup
	@$(RUN)python -m pip install --quiet --editable ".[benchmark]"
	@$(RUN)python -m pip install --quiet --no-deps gym-pusht==0.1.8
	@$(SIMULATED) --episodes 60 --seed 90000 --out $(BENCHMARK)/calibration/franka
	@$(SIMULATED) --episodes 60 --seed 92000 --out $(BENCHMARK)/test/franka-nominal
	@$(SIMULATED) --episodes 60 --seed 93000 --perturb benign --out $(BENCHMARK)/test/franka-benign
	@$(SIMULATED) --episodes 105 --seed 94000 --perturb failing --out $(BENCHMARK)/test/franka-failing
	@$(RUN)python tests/bench/pusht/rollouts.py --out $(BENCHMARK)/pusht --test 300 --seed 1
	@$(RUN)vigil monitor evaluate $(BENCHMARK)/test $(BENCHMARK)/pusht/test --calibration $(BENCHMARK)/calibration \
		--calibration $(BENCHMARK)/pusht/calibration --methods all --out docs/monitor

clean:
	rm -rf .venv ros_ws/build ros_ws/install ros_ws/log out .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find ros_ws/src tests -name __pycache__ -prune -exec rm -rf {} +
	rm -rf ros_ws/src/vigil/*.egg-info
