#!/usr/bin/env bash
# replay.sh itself, on a CPU, where both runs are eager: equal runs pass, a planted difference fails the case, however
# small it is, and wrong arguments are named.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
replay=$here/gpu/replay.sh
cpu=(bash "$replay" --device cpu --jobs 2)

"${cpu[@]}" --only 'capacity ramp' >output 2>&1 || fail "equal runs do not pass" output
grep -qE '^capacity ramp, drop +12 +0 +- +0 +0 +equal$' output || fail "the table does not say equal" output
passed "equal runs are equal"

planted() {   # CASE PATTERN OPTION…
  "${cpu[@]}" --only "$1" --second "${*:3}" >output 2>&1
  local code=$?
  [[ $code -eq 1 ]] || fail "$*: code $code, not 1" output
  grep -qE "$2" output || fail "$*: nothing says $2" output
}
planted 'capacity ramp' '^capacity ramp, drop .* FAILED' --moe.capacity_ramp_steps 9
planted 'bias update, groups' '^bias update, groups.* FAILED' --router.bias_update_rate 0.0100001
planted plain '^plain .* FAILED, exit code 2: .*top_k' --router.top_k 99
planted 'no such case' "no case's name contains" --train.seed 1
passed "a planted difference is found"

wrong() {
  bash "$replay" "${@:2}" >output 2>&1
  local code=$?
  [[ $code -eq 2 ]] || fail "replay.sh ${*:2}: code $code, not 2" output
  grep -qF -- "$1" output || fail "replay.sh ${*:2}: nothing says $1" output
}
wrong "unknown option '--case'" --case plain
wrong '--only needs a value' --only
wrong '--jobs 0 is no number' --jobs 0
wrong '--device tpu is neither' --device tpu
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  bash "$replay" >output 2>&1
  [[ $? -eq 77 ]] || fail "without a GPU it is not skipped" output
fi
passed "wrong arguments are named, and without a GPU it is skipped"
