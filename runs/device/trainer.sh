#!/usr/bin/env bash
# The trainer itself on this GPU, a part after the other; a part that fails does not stop the others. Ends with 1 where one failed.
#   runs/device/trainer.sh BIN OUT [PART…]
#     resume    moe_8x2, train.deterministic: 24 steps, the same killed after its checkpoint at step 12, and resumed: equal losses
#     dense     dense_d12: 12 steps
#     fp8       moe_8x2 in fp8: 8 steps
#     ordered   moe_8x2 of two layers with train.deterministic, twice: every bit of 8 steps and of the checkpoint
#     ranks     moe_8x2 on two GPUs under mpirun, 12 steps (skipped where there is one)
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
(($# >= 2)) || { sed -n '3,9s/^# //p' "$0" >&2; exit 2; }
bin=$(cd "$1" && pwd) && mkdir -p "$2" && out=$(cd "$2" && pwd) || exit 2
parts=("${@:3}")
((${#parts[@]})) || parts=(resume dense fp8 ordered ranks)
failed=0
gpus=$(nvidia-smi -L | grep -c '^GPU')

common=(--data.cache "$out/cache" --train.micro_batch 64 --train.log_every 2 --train.eval_every 0 --train.eval_tokens 65536
        --train.sample_tokens 1)
# train RUN CONFIG STEPS OPTION…: into OUT/RUN, output added to OUT/RUN.log
train() {
  "${launch[@]}" "$bin/train" --config "$2" --train.out "$out/$1" --train.steps "$3" "${common[@]}" "${@:4}" >>"$out/$1.log" 2>&1
}
launch=()
fails() { echo "FAILED: $1"; tail -n 12 "$out/$2.log"; failed=1; }
told() { grep -E 'first step done|^step|^resum|held-out' "$out/$1.log" | tail -n "${2:-3}"; }
wants() { [[ " ${parts[*]} " == *" $1 "* ]] && printf '\n== %s\n' "$1"; }

train text moe_8x2 1 --model.n_layer 1 || { fails "not even one layer trains" text; exit 1; }     # cuts the text
rm -rf "$out/text"

if wants resume; then
  saving=(--train.checkpoint_every 12 --train.deterministic true)
  train whole moe_8x2 24 "${saving[@]}" || fails "24 steps" whole
  told whole 3
  rm -rf "$out/whole/checkpoints"
  train killed moe_8x2 24 "${saving[@]}" &
  run=$!
  until grep -q '"step":14' "$out/killed/metrics.jsonl" 2>/dev/null || ! kill -0 $run 2>/dev/null; do sleep 0.1; done
  pkill -KILL -f -- "--train.out $out/killed"
  wait $run 2>/dev/null
  train killed moe_8x2 24 "${saving[@]}" --resume || fails "resuming" killed
  told killed 3
  python3 tests/metrics.py curve "$out/whole/metrics.jsonl" "$out/killed/metrics.jsonl" 0 || failed=1
  rm -rf "$out"/{whole,killed}/checkpoints
fi
if wants dense; then
  train dense dense_d12 12 || fails "12 steps" dense
  told dense
  rm -rf "$out/dense/checkpoints"
fi
if wants fp8; then
  train fp8 moe_8x2 8 --precision.mode fp8 || fails "8 steps" fp8
  grep -iE 'fp8' "$out/fp8.log" | head -n 4
  told fp8
  rm -rf "$out/fp8/checkpoints"
fi
if wants ordered; then
  for run in ordered.a ordered.b; do
    train $run moe_8x2 8 --model.n_layer 2 --train.deterministic true || fails "8 steps in one order" $run
  done
  python3 tests/metrics.py apart "$out/ordered.a" "$out/ordered.b" 0 || { echo "FAILED: two runs differ"; failed=1; }
  rm -rf "$out"/ordered.*/checkpoints
fi
if wants ranks; then
  if ((gpus < 2)); then
    echo "skipped: one GPU"
  else
    launch=(mpirun --allow-run-as-root -np 2)
    train ranks moe_8x2 12 || fails "two ranks" ranks
    told ranks
  fi
fi
exit $failed
