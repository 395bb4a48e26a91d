#!/bin/sh
# rank_death.sh BINARY RANKS FAULT: one rank of comm_ranks ends badly; the run must end within 10 seconds, not
# successfully, and say which rank it was and why.
binary=$1 ranks=$2 fault=$3
last=$((ranks - 1))
case $fault in
  killed|aborts) expected="rank $last on host .* died: connection lost" ;;
  killed-main)   expected="rank 0 on host .* died: connection lost" ;;
  throws)        expected="rank $last on host .* died: the disk is full" ;;
  silent)        expected="rank $last on host .* died: silent for 2 s" ;;
  mismatch)      expected="rank . on host .* died: it is at .* where rank . is at .*: a bug" ;;
  config)        expected="different config: train.seed is 1337 on .* but 7 on rank $last" ;;
  *) echo "unknown fault $fault"; exit 1 ;;
esac

begin=$(date +%s)
output=$(timeout 60 mpirun --allow-run-as-root --oversubscribe -np "$ranks" "$binary" "$fault" 2>&1)
code=$?
seconds=$(($(date +%s) - begin))

fail() {
  echo "$output"
  echo "FAILED ($fault, $ranks ranks, exit code $code, $seconds s): $1"
  exit 1
}
[ "$code" -ne 0 ] || fail "the run ended as a success"
[ "$seconds" -le 10 ] || fail "the run took longer than 10 s to end"
echo "$output" | grep -q "$expected" || fail "no line matches: $expected"
echo "passed: $(echo "$output" | grep -m 1 "$expected")"
