#!/bin/sh
# The Python tests against a build that uses POSIX system calls only (FASTPOOL_POSIX=1), in a copy of the tree: of what
# depends on the system, or with --full all.
# usage: test_posix.sh PYTHON [--full]
set -eu
cd "$(dirname "$0")/.."
python=$1
sh tools/copy_tree.sh build/posix
cd build/posix
export PYTHONPATH="$PWD" # of the programs that tests start, too
FASTPOOL_POSIX=1 "$python" setup.py --quiet build_ext --inplace --parallel "$(nproc)"
if [ "${2:-}" = --full ]; then
    set --
else
    # These look at values, texts, definitions and drawings, which are the same above any system. And workers of a fork
    # server do what spawned ones do.
    same="benchmarks codec definitions docs insights leftovers machine progress rules tags typed_program utils validation"
    set -- -k "not forkserver"
    for name in $same; do
        set -- "$@" "--ignore=tests/test_$name.py"
    done
fi
exec "$python" -m pytest -q --durations=30 tests "$@"
