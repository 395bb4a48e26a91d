#!/usr/bin/env bash
# quickstart.json reaches the bits per byte that the README states, on the default corpus. Minutes.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
promised=1.60
"$bin/train" --config quickstart.json --train.out "$work/quickstart" --data.cache "$data/quickstart" > log 2>&1 ||
  fail "quickstart ended with code $?" log
grep -q 'expert usage on held-out text' log || fail "no expert table at the end" log
steps=$(metrics last_step quickstart/metrics.jsonl)
before=$(metrics value quickstart/metrics.jsonl eval 0 bits_per_byte)
after=$(metrics value quickstart/metrics.jsonl eval "$steps" bits_per_byte)
python3 -c "import sys; sys.exit(not ($after <= $promised < $before))" || fail "$after bits per byte after $steps steps, promised $promised" log
passed "quickstart: $before bits per byte before, $after after $steps steps; promised at most $promised"
