#!/bin/sh
# Copies the tree, without what was built but for Cython's C, to a folder in which another build lives. Times are kept, so
# that only what has changed since the last copy is built again.
# usage: copy_tree.sh FOLDER
set -eu
cd "$(dirname "$0")/.."
[ -d build/cython ] && cython=build/cython || cython=
parts="fastpool csrc tests tools docs benchmarks setup.py pyproject.toml README.md LICENSE Makefile .gitignore"
mkdir -p "$1"
for part in $parts; do
    [ -d "$1/$part" ] && find "$1/$part" -type f ! -name '*.so' -delete
done
tar -cf - --exclude='*.so' --exclude=__pycache__ --exclude=results $parts $cython | tar -xpf - -C "$1"
