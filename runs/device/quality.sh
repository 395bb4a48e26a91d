#!/usr/bin/env bash
# Whether a newer build learns as an older one: both train the same steps with the same seeds, and the means of their last
# three held-out losses are compared. Runs spread over this machine's GPUs. Ends with 1 where they differ by more than 0.5%.
# Usage: runs/device/quality.sh OLDER_BIN NEWER_BIN OUT [CONFIG [OPTION…]]
#   default: moe_8x2, 65,536 tokens a micro-batch, 131,072 a step: four runs of two minutes on an H100
#   STEPS (default 500)     SEEDS (default "1 2")     CORPUS: shards of data/python_env.sh; default: the default corpus,
#   which such a run reads several times     KEEP=1: the newer build's checkpoints stay, for runs/bench.sh --checkpoint
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
older=${1:?folder of the older programs} newer=${2:?folder of the newer programs} out=${3:?a folder for the results}
config=${4:-moe_8x2} steps=${STEPS:-500}
read -ra seeds <<<"${SEEDS:-1 2}"
options=("${@:5}")
(($# > 3)) || options=(--train.micro_batch 64 --train.batch_tokens 131072)
[[ -z ${CORPUS:-} ]] || options+=(--data.corpus "$CORPUS")
((steps >= 10)) || { echo "STEPS=$steps: evaluations come ten times, so it takes at least 10" >&2; exit 2; }
for bin in "$older" "$newer"; do [[ -x $bin/train ]] || { echo "$bin holds no program train" >&2; exit 2; }; done
mkdir -p "$out" || exit
run() {   # BUILD SEED OPTION…: into OUT/BUILD.SEED; checkpoints are gigabytes
  local name=$1.$2
  "${!1}/train" --config "configs/$config.json" --train.out "$out/$name" --data.cache "$out/cache" --train.seed "$2" \
    --train.log_every 50 --train.sample_tokens 1 "${options[@]}" "${@:3}" >"$out/$name.log" 2>&1
  local code=$?
  [[ -n ${KEEP:-} && $1 == newer ]] || rm -rf "$out/$name/checkpoints"
  ((code == 0)) || { echo "$name ended with code $code" >&2; tail -n 5 "$out/$name.log" >&2; }
  return $code
}
# The text is cut before anything trains.
run newer "${seeds[0]}" --train.steps 1 --train.eval_every 0 || exit
rm -rf "$out/newer.${seeds[0]}"

jobs=()
for seed in "${seeds[@]}"; do jobs+=("older $seed" "newer $seed"); done
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
queue() {   # those of the jobs that this GPU, of `gpus`, takes
  local job code=0
  for ((job = $1; job < ${#jobs[@]}; job += gpus > 0 ? gpus : 1)); do
    read -r build seed <<<"${jobs[job]}"
    run "$build" "$seed" --train.steps "$steps" --train.eval_every $((steps / 10)) || code=1
  done
  return $code
}
workers=()
for ((gpu = 0; gpu < (gpus > 0 ? gpus : 1); ++gpu)); do
  ((gpus == 0)) || export CUDA_VISIBLE_DEVICES=$gpu
  queue "$gpu" &
  workers+=($!)
done
for worker in "${workers[@]}"; do wait "$worker" || exit; done

python3 - "$out" "${seeds[@]}" <<'PY'
import json, sys

out, seeds = sys.argv[1], sys.argv[2:]
means = {"older": [], "newer": []}
print(f"{'run':>10}  last three held-out losses  mean")
for build, of_build in means.items():
    for seed in seeds:
        with open(f"{out}/{build}.{seed}/metrics.jsonl") as file:
            losses = [line["loss"] for line in map(json.loads, file) if line["kind"] == "eval"][-3:]
        of_build.append(sum(losses) / len(losses))
        print(f"{build:>8} {seed}  {'  '.join(f'{loss:.4f}' for loss in losses):>26}  {of_build[-1]:.4f}")
older, newer = (sum(of_build) / len(of_build) for of_build in means.values())
print(f"means of all: older {older:.4f}, newer {newer:.4f}; newer / older {newer / older:.4f}")
sys.exit(abs(newer / older - 1) > 0.005)
PY
