#!/usr/bin/env bash
# 100 steps of tiny_moe.json on fixed text have the losses they had: within 1e-5 over 10 steps, 1e-2 at step 100, since
# processors round differently. A second run on this machine gives the same bits.
#   golden.sh --write    takes this machine's losses as the golden ones; the change that calls for it says why
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
golden=$here/golden/golden.json
run=(--config tiny_moe --train.steps 100)

must_train first "${run[@]}"
if [[ ${1:-} == --write ]]; then metrics write_golden first/metrics.jsonl "$golden"; exit; fi
metrics golden first/metrics.jsonl "$golden" || fail "losses are not the golden ones"
must_train second "${run[@]}"
same_run first second
passed "golden losses; a second run is the same to the bit"
