"""fastpool beside a plain loop, `multiprocessing.Pool` and mpire, in one run: `python -m benchmarks`."""
