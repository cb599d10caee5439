#!/bin/sh
# The tests of the codec, with many damaged bytes, against a build with AddressSanitizer and UndefinedBehaviorSanitizer,
# in a copy of the tree.
# usage: test_asan.sh PYTHON [INPUTS]
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
FASTPOOL_SANITIZE=1 "$python" setup.py --quiet build_ext --inplace
# Python's own allocator hides where an object ends. What Python keeps until its end is no leak of ours. Not captured: the
# sanitizer's last words.
exec env LD_PRELOAD="$asan $ubsan" PYTHONMALLOC=malloc PYTHONPATH="$PWD" FASTPOOL_FUZZ="${2:-200000}" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    "$python" -m pytest -q -s tests/test_tags.py tests/test_codec.py tests/test_arrays.py --timeout 3000
