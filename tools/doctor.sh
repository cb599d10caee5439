#!/bin/sh
# Says in one sentence what this machine lacks to build fastpool. Finds out by trying.
# usage: doctor.sh [PYTHON]
python=${1:-python3}
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

lacking() {
    echo "fastpool cannot be built here: $1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    lacking "there is no '$python'; install Python 3.10 or newer (Debian: apt-get install python3) or name one with PYTHON=..."

"$python" -c '' 2>/dev/null ||
    lacking "'$python' does not start; name another Python with PYTHON=..."

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    lacking "'$python' is older than Python 3.10 ($("$python" --version 2>&1)); name a newer one with PYTHON=..."

"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    lacking "'$python' has no venv module; install it (Debian: apt-get install python3-venv)"

# The compiler that setuptools will call, and where this Python keeps its headers.
compiler=$("$python" -c '
import os, sysconfig
print((os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").strip())')
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')

[ -n "$compiler" ] || lacking "CC names no C compiler: it is set to blanks; unset it, or name one with CC=..."
echo 'int main(void) { return 0; }' >"$scratch/empty.c"
# unquoted: CC may hold options
$compiler -o "$scratch/empty" "$scratch/empty.c" 2>/dev/null ||
    lacking "there is no working C compiler '$compiler'; install one (Debian: apt-get install gcc libc6-dev) or name one with CC=..."

echo '#include <Python.h>' >"$scratch/headers.c"
$compiler -I"$headers" -c -o "$scratch/headers.o" "$scratch/headers.c" 2>/dev/null ||
    lacking "the C headers of '$python' are missing (Python.h in $headers); install them (Debian: apt-get install python3-dev)"
