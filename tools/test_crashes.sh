#!/bin/sh
# The crash matrix, against a build with places in the core where a worker can be made to end, in a copy of the tree.
# usage: test_crashes.sh PYTHON
set -eu
cd "$(dirname "$0")/.."
python=$1
sh tools/copy_tree.sh build/points
cd build/points
export PYTHONPATH="$PWD" # of the programs that tests start, too
FASTPOOL_POINTS=1 "$python" setup.py --quiet build_ext --inplace --parallel "$(nproc)"
exec "$python" -m pytest -q -p no:faulthandler tests/crash_matrix.py
