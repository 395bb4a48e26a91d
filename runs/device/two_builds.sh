#!/usr/bin/env bash
# Whole training steps of two builds in turn on this machine: median tokens/s of each and their ratio.
# Usage: runs/device/two_builds.sh OLDER_BIN NEWER_BIN OUT [CONFIG [OPTION…]]     default: moe_8x2, 65,536 tokens a micro-batch
#   ROUNDS (default 3): runs of each build     STEPS (default 20): of a run; those after the first 4 count
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
older=${1:?folder of the older programs} newer=${2:?folder of the newer programs} out=${3:?a folder for the results}
config=${4:-moe_8x2} rounds=${ROUNDS:-3} steps=${STEPS:-20}
options=("${@:5}")
(($# > 3)) || options=(--train.micro_batch 64)
for bin in "$older" "$newer"; do [[ -x $bin/train ]] || { echo "$bin holds no program train" >&2; exit 2; }; done
((steps >= 5 && rounds >= 1)) || { echo "STEPS=$steps ROUNDS=$rounds: the first 4 steps of a run do not count, so a run takes 5, and there is one at least" >&2; exit 2; }
mkdir -p "$out" || exit
run() {   # BIN NAME OPTION…; checkpoints are not kept, they are gigabytes
  "$1/train" --config "configs/$config.json" --train.out "$out/$2" --data.cache "$out/cache" --train.log_every 4 --train.eval_every 0 \
    --train.eval_tokens 65536 --train.sample_tokens 1 "${@:3}" >"$out/$2.log" 2>&1
  local code=$?
  rm -rf "$out/$2/checkpoints"
  ((code == 0)) || { echo "$2 ended with code $code" >&2; tail -n 5 "$out/$2.log" >&2; exit 1; }
}
# The text is cut before anything is measured.
for build in older newer; do run "${!build}" "$build.text" "${options[@]}" --model.n_layer 1 --train.steps 1; done
for ((round = 1; round <= rounds; ++round)); do
  order=(older newer)
  ((round % 2)) || order=(newer older)      # neither always runs on the warmer machine
  for build in "${order[@]}"; do run "${!build}" "$build.$round" "${options[@]}" --train.steps "$steps"; done
done
python3 - "$out" "$rounds" <<'EOF'
import json, statistics, sys

out, rounds = sys.argv[1], int(sys.argv[2])
rates = {"older": [], "newer": []}
print(f"{'run':>10}  {'tokens/s, median':>16}  {'lowest':>9}  {'highest':>9}  {'last loss':>9}")
for build, all_rates in rates.items():
    for round in range(1, rounds + 1):
        with open(f"{out}/{build}.{round}/metrics.jsonl") as file:
            lines = [line for line in map(json.loads, file) if line["kind"] == "train" and line["step"] > 4]
        rate = [line["tokens_per_s"] for line in lines]
        all_rates += rate
        print(f"{build:>8} {round}  {statistics.median(rate):16,.0f}  {min(rate):9,.0f}  {max(rate):9,.0f}  {lines[-1]['loss']:9.4f}")
older, newer = (statistics.median(rate) for rate in rates.values())
print(f"medians of all: older {older:,.0f}, newer {newer:,.0f} tokens/s; newer / older {newer / older:.4f}")
EOF
