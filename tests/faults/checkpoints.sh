#!/usr/bin/env bash
# Checkpoints that are damaged, kept, or start another run.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
model=(--config tiny_moe --train.log_every 1 --train.steps 12)

# The newest is cut short, the one before has a wrong bit: the third is taken, with a warning for each.
damaged() {
  must_train straight "${model[@]}" --train.checkpoint_every 4 --train.keep_checkpoints 3
  cp -r straight damaged
  truncate -s -100 damaged/checkpoints/step-00000012/weights.safetensors
  printf 'x' | dd of=damaged/checkpoints/step-00000008/optimizer.safetensors bs=1 seek=5000 conv=notrunc status=none
  must_train damaged "${model[@]}" --train.keep_checkpoints 3 --resume
  grep -q 'warning: .*step-00000012/weights.safetensors is truncated' damaged.log || fail "no warning of the truncated file" damaged.log
  grep -q 'warning: .*step-00000008/optimizer.safetensors is corrupted' damaged.log || fail "no warning of the corrupted file" damaged.log
  grep -q 'resumed .*step-00000004 at step 4' damaged.log || fail "it did not fall back to step 4" damaged.log
  same_run straight damaged
  passed "damaged checkpoints are passed over with a warning, and the run ends the same"
}

newer_format() {
  cp -r straight newer
  sed -i 's/"version": [0-9]*/"version": 99/' newer/checkpoints/step-00000012/MANIFEST.json
  train newer "${model[@]}" --resume && fail "a checkpoint of a newer format was resumed" newer.log
  grep -q 'format version 99' newer.log || fail "nothing says that the format is newer" newer.log
  passed "a checkpoint of a newer format stops the resume"
}

# Other weights, step 0, nothing of the old run's state; also where the new run takes the old one's folder.
from_weights() {
  local before after
  before=$(metrics value straight/metrics.jsonl eval 12 loss)
  must_train next "${model[@]}" --train.steps 3 --init_from straight
  after=$(metrics value next/metrics.jsonl eval 0 loss)
  [[ $before == "$after" ]] || fail "--init_from starts at a held-out loss of $after, the run before ended at $before" next.log
  [[ $(metrics value next/metrics.jsonl train 1 lr) == 0.02 ]] || fail "--init_from goes on with the old schedule" next.log
  cp -r straight place
  must_train place "${model[@]}" --train.steps 3 --init_from "$work/place"
  [[ $(metrics value place/metrics.jsonl eval 0 loss) == "$before" ]] || fail "weights from the run's own folder differ" place.log
  cmp place.1/metrics.jsonl straight/metrics.jsonl || fail "the earlier run in this folder was not kept" place.log
  passed "--init_from starts at step 0 with the weights of the run named, and an earlier run's folder is moved aside"
}

# Weights of another model: the key that differs, before anything is made.
of_another_model() {
  train other "${model[@]}" --init_from straight --model.n_embd 128
  local code=$?
  [[ $code -eq 2 ]] || fail "--init_from with another model ends with code $code, not 2" other.log
  grep -q '^error: model.n_embd = 128, but straight/checkpoints/step-[0-9]* was trained with 64 (' other.log || fail "the key is not named" other.log
  [[ ! -e other ]] || fail "it created the run's folder"
  cp -r straight deeper
  train deeper "${model[@]}" --resume --model.n_layer 3
  code=$?
  [[ $code -eq 2 ]] || fail "--resume with another model ends with code $code, not 2" deeper.log
  grep -q '^error: model.n_layer = 3, but .*deeper/checkpoints/step-00000012 was trained with 2 (it has no tensor' deeper.log ||
    fail "the key is not named" deeper.log
  cmp straight/metrics.jsonl deeper/metrics.jsonl || fail "the run's folder was changed"
  passed "--init_from and --resume with another model name the key that differs"
}

# Rates this high make the loss worse again, so that the best checkpoint is not among the last.
best() {
  must_train best "${model[@]}" --train.checkpoint_every 2 --train.eval_every 2 --train.keep_checkpoints 2 \
    --optim.schedule.shape constant
  must_train best "${model[@]}" --train.checkpoint_every 2 --train.eval_every 2 --train.keep_checkpoints 2 \
    --optim.schedule.shape constant --resume --train.steps 24 --optim.muon.lr 10 --optim.adamw.embed_lr 100
  local lowest kept
  lowest=$(python3 -c '
import json
evals = [json.loads(line) for line in open("best/metrics.jsonl") if "\"eval\"" in line]
print("step-%08d" % min((e for e in evals if e["step"] > 0), key=lambda e: e["loss"])["step"])')
  [[ $lowest < step-00000020 ]] || fail "the loss did not rise: this test needs another rate" best.log
  kept=$(ls best/checkpoints)
  [[ $(cat best/checkpoints/BEST) == "$lowest" ]] || fail "BEST names $(cat best/checkpoints/BEST), the lowest loss is that of $lowest" best.log
  [[ $kept == "BEST"$'\n'"$lowest"$'\n'"step-00000022"$'\n'"step-00000024" ]] || fail "kept are: $kept" best.log
  passed "the best checkpoint ($lowest) stays besides the last two"
}

damaged
newer_format
from_weights
of_another_model
best
