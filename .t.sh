cd /work/gpu; export PYTHONPATH=/work/gpu PATH=/work/main/.venv/bin:$PATH
ruff format . | tail -1; ruff check .; mypy | tail -5; lint-imports | grep Contracts:
pytest -x -p no:cacheprovider tests/test_clock.py tests/test_gpu.py tests/test_full_size.py tests/test_tuning.py tests/test_formats.py tests/test_sweep.py tests/test_experiment.py 2>&1 | tail -15
