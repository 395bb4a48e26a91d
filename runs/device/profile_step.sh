#!/usr/bin/env bash
# One training step of a config on this GPU as a table of kernels, at 65,536 tokens a micro-batch.
# Usage: runs/device/profile_step.sh BIN_FOLDER CONFIG OUT [OPTION…]
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${1:?folder of the built programs} config=${2:?a config} out=${3:?a folder for the results}
shift 3
mkdir -p "$out"
"$bin/train" --config "$config" --train.out "$out/run" --data.cache "$out/cache" --train.steps 12 --train.log_every 2 \
  --train.eval_every 0 --train.eval_tokens 65536 --train.sample_tokens 1 --train.profile_step 9 "$@" > "$out/train.log" 2>&1 ||
  { tail -30 "$out/train.log"; exit 1; }
grep -E 'first step done|^step' "$out/train.log" | tail -4
cat "$out/run/profile.txt"
