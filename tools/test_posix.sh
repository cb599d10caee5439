#!/bin/sh
# The Python tests against a build that uses POSIX system calls only (FASTPOOL_POSIX=1), in a copy of the tree.
# usage: test_posix.sh PYTHON
set -eu
cd "$(dirname "$0")/.."
python=$1
sh tools/copy_tree.sh build/posix
cd build/posix
export PYTHONPATH="$PWD" # of the programs that tests start, too
FASTPOOL_POSIX=1 "$python" setup.py --quiet build_ext --inplace --parallel "$(nproc)"
exec "$python" -m pytest -q --durations=30 tests
