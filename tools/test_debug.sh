#!/bin/sh
# The Python tests against a build with assertions and tallies (FASTPOOL_DEBUG=1), in a copy of the tree: after each test,
# the blocks, records and rings of its pools are compared (tests/tallies.py).
# Not these: benchmarks, and what this build alone imports of libc (assert).
# usage: test_debug.sh PYTHON
set -eu
cd "$(dirname "$0")/.."
python=$1
sh tools/copy_tree.sh build/debug
cd build/debug
FASTPOOL_DEBUG=1 "$python" setup.py --quiet build_ext --inplace --parallel "$(nproc)"
exec env PYTHONPATH="$PWD" "$python" -m pytest -q tests --ignore=tests/test_benchmarks.py -k "not table_is_complete"
