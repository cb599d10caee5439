"""fastpool beside a plain loop and other pools, in one run: `python -m benchmarks`; see docs/benchmarks.md."""
