#!/usr/bin/env bash
# Some steps of every large preset on this GPU, at a micro-batch that suits 80 GB: does it run, how fast, how much memory.
# Usage: runs/device/presets.sh BIN_FOLDER OUT [CONFIG:SEQUENCES…]
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${1:?folder of the built programs} out=${2:?a folder for the results}
shift 2
mkdir -p "$out"
(($#)) || set -- moe_8x2:64 dense_d12:64 moe_32x4:64 d20_8x2:16 llama_moe_small:16
for preset; do
  name=${preset%:*}
  "$bin/train" --config "$name.json" --train.out "$out/$name" --data.cache "$out/cache" --train.micro_batch "${preset#*:}" \
    --train.steps 10 --train.log_every 2 --train.eval_every 0 --train.eval_tokens 65536 --train.sample_tokens 1 \
    > "$out/$name.log" 2>&1 || { echo "$name failed"; tail -15 "$out/$name.log"; continue; }
  echo "$name ($(grep -E 'first step done' "$out/$name.log"))"
  grep -E '^step' "$out/$name.log" | tail -3
done
