#!/bin/sh
# Python tests against a build with AddressSanitizer and UndefinedBehaviorSanitizer, in a copy of the tree: those of damaged
# memory, or with --full all that make sense, with many more damages.
# usage: test_asan.sh PYTHON [--full]
# FASTPOOL_DAMAGES=N: that many, each some hundredths of a second
set -eu
cd "$(dirname "$0")/.."
python=$1
compiler=${CC:-cc}
asan=$($compiler -print-file-name=libasan.so)
ubsan=$($compiler -print-file-name=libubsan.so)
if [ ! -e "$asan" ] || [ ! -e "$ubsan" ]; then
    echo "not run: the C compiler has no libasan.so and libubsan.so"
    exit 77
fi
sh tools/copy_tree.sh build/asan
cd build/asan
FASTPOOL_SANITIZE=1 "$python" setup.py --quiet build_ext --inplace --parallel "$(nproc)"
if [ "${2:-}" = --full ]; then
    # Not these: benchmarks (figures and counts of another build), RLIMIT_AS (the sanitizer's shadow takes terabytes of
    # addresses), other programs that are started with an environment of their own, without the sanitizer.
    set -- tests --ignore=tests/test_benchmarks.py -k "not address_space and not environment"
    damages=${FASTPOOL_DAMAGES:-100000} fuzz=200000
else
    set -- tests/test_damage.py
    damages=${FASTPOOL_DAMAGES:-2000} fuzz=2000
fi
# Python's own allocator hides where an object ends. What Python keeps until its end is no leak of ours. A worker that a
# signal ends must end by it: tests ask how. What is freed is kept from use for 4 MB: with more, a fork takes twice as
# long. Not captured: the sanitizer's last words.
exec env LD_PRELOAD="$asan $ubsan" PYTHONMALLOC=malloc PYTHONPATH="$PWD" \
    FASTPOOL_DAMAGES=$damages FASTPOOL_FUZZ=$fuzz \
    ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_abort=0:handle_sigbus=0:quarantine_size_mb=4 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    "$python" -m pytest -q -s --timeout 3000 "$@"
