#!/usr/bin/env bash
# A loss or gradient that is not finite is skipped, logged and counted, never reaches the weights, and stops the run after
# train.nonfinite_limit of them in a row. Learning rates far beyond reason bring it about.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
absurd=(--config tiny_moe --train.steps 40 --train.checkpoint_every 1 --train.keep_checkpoints 2 --train.nonfinite_limit 6
        --optim.muon.lr 1e30 --optim.adamw.embed_lr 1e30 --optim.adamw.head_lr 1e30 --optim.adamw.value_embed_lr 1e30)

train blown "${absurd[@]}"
code=$?
[[ $code -eq 1 ]] || fail "the run ended with code $code, not 1" blown.log
grep -q 'train.nonfinite_limit = 6 steps in a row' blown.log || fail "nothing says why it stopped" blown.log
grep -q 'loss or gradient is not finite; [0-9]* updates skipped so far, 6 in a row' blown.log || fail "skipped updates are not logged" blown.log
grep -qE '6 in a row; first in layer 0, (residual|attention|router logits|ffn)' blown.log || fail "no layer is named" blown.log
last=$(metrics last_step blown/metrics.jsonl)
[[ $last -lt 40 ]] || fail "it ran to the end" blown.log
[[ $(metrics value blown/metrics.jsonl train "$last" skipped_nonfinite) -ge 6 ]] || fail "skipped updates are not counted" blown.log

for checkpoint in blown/checkpoints/step-*; do
  metrics finite "$checkpoint/weights.safetensors" || fail "a checkpoint holds values that are not finite"
  metrics finite "$checkpoint/optimizer.safetensors" || fail "a checkpoint holds optimizer state that is not finite"
done
# Skipped updates leave every bit of the weights and of the optimizer as it was.
mapfile -t saved < <(printf '%s\n' blown/checkpoints/step-*)
for file in weights.safetensors optimizer.safetensors; do
  cmp "${saved[0]}/$file" "${saved[1]}/$file" || fail "a skipped update changed $file"
done
passed "after $((last - 6)) steps 6 updates in a row were skipped, logged and counted; the run stopped; all that is saved is finite"

# A count that never gets there does not stop the run.
train patient "${absurd[@]}" --train.nonfinite_limit 100 || fail "it stopped before the limit" patient.log
passed "a run below the limit goes on"
