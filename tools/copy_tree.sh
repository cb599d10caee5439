#!/bin/sh
# Copy what a build and its tests need, so that another kind of build leaves this one as it is.
# usage: copy_tree.sh FOLDER
set -eu
cd "$(dirname "$0")/.."
mkdir -p "$1"
for part in fastpool csrc tests docs benchmarks setup.py pyproject.toml README.md .gitignore; do
    rm -rf "${1:?}/$part"
    cp -Rp "$part" "$1/"
done
rm -f "$1"/fastpool/*.so
