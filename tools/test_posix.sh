#!/bin/sh
# The Python tests against a build that uses POSIX system calls only (FASTPOOL_POSIX=1), in a copy of the tree.
# usage: test_posix.sh PYTHON
set -eu
cd "$(dirname "$0")/.."
python=$1
copy=build/posix
mkdir -p "$copy"
for part in fastpool csrc tests docs benchmarks setup.py pyproject.toml README.md .gitignore; do
    rm -rf "${copy:?}/$part"
    cp -R "$part" "$copy/"
done
cd "$copy"
rm -f fastpool/*.so
FASTPOOL_POSIX=1 "$python" setup.py --quiet build_ext --inplace
exec "$python" -m pytest -q tests
