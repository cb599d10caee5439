#!/bin/sh
# Check the models of the protocol (../README.md) with spin: each model whole, without an error, and then each of
# its mutations, in which an error must be found: a model that cannot fail proves nothing.
#
#   csrc/models/run.sh             about four minutes on two cores, each search below 1.3 GB
#   FULL=1 csrc/models/run.sh      larger searches too, a minute or two and up to 2.6 GB each
#   csrc/models/run.sh NAME        only the run of that name
#   BUILD=… JOBS=… CC=…            where to build (default ../../build/models), how many at once (2), with what
#
# Prints a line for each run. Exit status: 0 all as expected; 1 not, or a search that was not completed; 77 no spin.
set -eu

models=$(cd "$(dirname "$0")" && pwd)
BUILD=${BUILD:-$models/../../build/models}
CC=${CC:-cc}

command -v spin > /dev/null || {
  echo "The protocol models need spin, which is in the Debian package spin."
  exit 77
}

# name | model | whole or error | switches
runs() {
  cat << END
bell|bell|whole|
bell-clear-before-write|bell|error|-DMUTATE_CLEAR_BEFORE_WRITE -DDEATHS=0
bell-no-cas|bell|error|-DMUTATE_NO_CAS -DDEATHS=0
bell-same-number|bell|error|-DMUTATE_SAME_NUMBER -DDEATHS=0
bell-silent-abandon|bell|error|-DMUTATE_SILENT_ABANDON -DDEATHS=0
bell-sleep-through-abandon|bell|error|-DMUTATE_SLEEP_THROUGH_ABANDON -DDEATHS=0
bell-no-barrier|bell|error|-DMUTATE_NO_BARRIER
bell-late-register|bell|error|-DMUTATE_LATE_REGISTER
bell-no-W1|bell|error|-DMUTATE_NO_W1
bell-worker-no-S2|bell|error|-DMUTATE_WORKER_NO_S2
bell-look-before-S1|bell|error|-DMUTATE_LOOK_BEFORE_S1
bell-ring-before-news|bell|error|-DMUTATE_RING_BEFORE_NEWS
bell-no-handle|bell|error|-DMUTATE_NO_HANDLE
bell-drain-after-look|bell|error|-DMUTATE_DRAIN_AFTER_LOOK
bell-silent-starvation|bell|error|-DMUTATE_SILENT_STARVATION
backlog|backlog|whole|
backlog-rung-for-ever|backlog|error|-DMUTATE_RUNG_FOR_EVER
backlog-one-ring|backlog|error|-DMUTATE_ONE_RING
backlog-silent-claim|backlog|error|-DMUTATE_SILENT_CLAIM
claim|claim|whole|
claim-abandon|claim|whole|-DABANDON -DDEATHS=0
claim-numbers-repeat|claim|whole|$repeat
claim-no-intent|claim|error|-DMUTATE_NO_INTENT
claim-no-number|claim|error|-DMUTATE_NO_NUMBER
claim-no-close|claim|error|-DMUTATE_NO_CLOSE
claim-no-none|claim|error|-DMUTATE_NO_NONE
claim-parameters-after-claim|claim|error|-DMUTATE_PARAMETERS_AFTER_CLAIM -DABANDON -DDEATHS=0
claim-exhausted-unchecked|claim|error|-DMUTATE_EXHAUSTED_UNCHECKED
claim-line-before-commit|claim|error|-DMUTATE_LINE_BEFORE_COMMIT
claim-lines-first|claim|error|-DMUTATE_LINES_FIRST
claim-collect-first|claim|error|-DMUTATE_COLLECT_FIRST
claim-intent-ignored|claim|error|-DMUTATE_INTENT_IGNORED
claim-numbers-of-intents-only|claim|error|-DMUTATE_NUMBERS_OF_INTENTS_ONLY $repeat
channels|channels|whole|
channels-no-channel|channels|error|-DMUTATE_NO_CHANNEL
channels-one-job-word|channels|error|-DMUTATE_ONE_JOB_WORD
channels-begun-first|channels|error|-DMUTATE_BEGUN_FIRST -DDEATHS=0
calls|calls|whole|
calls-no-barrier|calls|error|-DMUTATE_NO_BARRIER
calls-look-first|calls|error|-DMUTATE_LOOK_FIRST
calls-no-second-look|calls|error|-DMUTATE_NO_SECOND_LOOK
calls-no-pardon|calls|error|-DMUTATE_NO_PARDON
END
  if [ -n "${FULL:-}" ]; then
    cat << END
bell-2-deaths|bell|whole|-DDEATHS=2
claim-2-deaths|claim|whole|-DDEATHS=2
claim-abandon-death|claim|whole|-DABANDON
claim-numbers-repeat-death|claim|whole|-DDEATHS=1 -DTASKS=1 -DJOBS=4 -DNUMBERS=3
END
  fi
}
repeat='-DDEATHS=0 -DTASKS=1 -DJOBS=5 -DNUMBERS=3'

run_one() { # name model expected switches
  dir=$BUILD/$1
  rm -rf "$dir"
  mkdir -p "$dir"
  cd "$dir"
  # shellcheck disable=SC2086 # switches are words
  if ! spin -a $4 "$models/$2.pml" > spin.log 2>&1 ||
     ! "$CC" -O2 -w -DSAFETY -DCOLLAPSE -DMEMLIM=4000 -o pan pan.c > cc.log 2>&1; then
    echo "$1: cannot be built, see $dir"
    return 1
  fi
  ./pan -m100000 > pan.log 2>&1 || true
  states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.log)
  found=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.log)
  if [ "$3" = error ]; then
    if [ "${found:-0}" -gt 0 ]; then
      echo "$1: error found, as it must be ($states states)"
      return 0
    fi
    echo "$1: NO ERROR FOUND in a mutation (${states:-no} states), see $dir"
    return 1
  fi
  if [ "${found:-1}" -gt 0 ]; then
    echo "$1: ERROR (${states:-no} states), replay: cd $dir && spin -t -p -g $4 $models/$2.pml"
    return 1
  fi
  if grep -Eq 'depth too small|Search not completed|MEMLIM|out of memory' pan.log; then
    echo "$1: NOT COMPLETED ($states states), see $dir"
    return 1
  fi
  echo "$1: no error in $states states"
}

if [ "${1:-}" = --one ]; then
  IFS='|' read -r name model expected switches << END
$2
END
  run_one "$name" "$model" "$expected" "$switches"
  exit
fi

chosen=$(runs | grep -E "^${1:-.*}\|" || true)
[ -n "$chosen" ] || { echo "no run named $1"; exit 1; }
export BUILD CC
# xargs exits with 123 if any run failed
printf '%s\n' "$chosen" | tr '\n' '\0' | xargs -0 -n 1 -P "${JOBS:-2}" "$0" --one || exit 1
