#!/usr/bin/env bash
# Dense means dense: a build without src/model/moe and one with it give bitwise the same 20 dense steps.
# Usage: tests/dense_is_dense.sh [WITH_MOE_BIN WITHOUT_MOE_BIN]     builds both where they are not given
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export SWITCHYARD_ROOT=$root
with=${1:-$root/build/bin}
without=${2:-$root/build-dense/bin}
if (($# == 0)); then
  "$root/runs/setup.sh" --only train
  "$root/runs/setup.sh" --only train --build-dir build-dense --cmake -DWITH_MOE=OFF
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for build in with without; do
  "${!build}/train" --config tiny_dense.json --device cpu --train.steps 20 --train.log_every 1 --train.eval_every 0 \
    --data.corpus "$root/src" --data.cache "$work/cache" --train.out "$work/$build" > "$work/$build.log" 2>&1 \
    || { tail -20 "$work/$build.log"; exit 1; }
  grep -o '"kind":"train".*"loss":[^,]*' "$work/$build/metrics.jsonl" | sed 's/.*"loss"/"loss"/' > "$work/$build.losses"
done
cmp "$work/with.losses" "$work/without.losses"
cmp "$work"/with/checkpoints/step-*/weights.safetensors "$work"/without/checkpoints/step-*/weights.safetensors
if "$without/train" --config tiny_moe.json --device cpu --train.steps 1 --data.corpus "$root/src" --data.cache "$work/cache" \
    --train.out "$work/refused" > "$work/refused.log" 2>&1; then
  echo "a build without sparse layers accepted moe.use_moe = true"
  exit 1
fi
grep -q WITH_MOE "$work/refused.log"
echo "20 dense steps are bitwise equal with and without src/model/moe; $(wc -l < "$work/with.losses") losses compared"
