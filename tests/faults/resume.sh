#!/usr/bin/env bash
# A run that was interrupted, in whatever way, goes on as if it had not been: every loss and the final bits are those of
# the run that was left alone. Sparse, with accumulation over two micro-batches and dropout.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
model=(--config tiny_moe --train.batch_tokens 512 --train.micro_batch 4 --model.dropout 0.1 --train.log_every 1 --train.eval_every 6)

from_a_checkpoint() {
  local run=(--train.steps 12)
  must_train straight "${model[@]}" "${run[@]}"
  must_train resumed "${model[@]}" "${run[@]}" --train.checkpoint_every 5 --train.keep_checkpoints 3
  same_run straight resumed                       # saving changes nothing
  rm -r resumed/checkpoints/step-00000010 resumed/checkpoints/step-00000012
  must_train resumed "${model[@]}" "${run[@]}" --resume
  grep -q "resumed .*step-00000005 at step 5" resumed.log || fail "it did not resume at step 5" resumed.log
  same_run straight resumed
  passed "12 steps are 5 steps and --resume, bit for bit"
}

# Draws of routing depend on the step's number, so a resumed run makes the same ones.
random_routing() {
  local common=(--train.steps 8 --train.checkpoint_every 4 --train.keep_checkpoints 3 --moe.n_experts 8 --moe.expert_dropout 0.2)
  local -A rules=([noise]="--router.noise gumbel --router.n_group 4 --router.topk_group 2" [jitter]="--router.noise jitter"
                  [cosine]="--router.semantic true --router.noise gaussian")
  for rule in "${!rules[@]}"; do
    read -ra keys <<<"${rules[$rule]}"
    must_train "$rule" "${model[@]}" "${common[@]}" "${keys[@]}"
    cp -r "$rule" "again_$rule"
    rm -r "again_$rule/checkpoints/step-00000008"
    must_train "again_$rule" --resume
    grep -q 'resumed .* at step 4' "again_$rule.log" || fail "$rule: it did not resume at step 4" "again_$rule.log"
    same_run "$rule" "again_$rule"
  done
  passed "noise, jitter, whole-expert dropout and the cosine router go on bit for bit"
}

# The checkpoint's own keys rule a resume, and what the command line says beside.
without_the_config() {
  rm -r resumed/checkpoints/step-0000001?
  "$bin/train" --resume --train.out "$work/resumed" >resumed.log 2>&1 || fail "no resume by the folder alone" resumed.log
  same_run straight resumed
  passed "--resume needs no more than the run's folder"
}

# Asked to go on with what is done: it says so, and leaves every file as it was.
finished() {
  local before
  before=$(cd straight && find . -type f -exec sha256sum {} + | sort)
  "$bin/train" "${text[@]}" "${model[@]}" --train.out "$work/straight" --train.steps 12 --resume >finished.log 2>&1 ||
    fail "--resume of a finished run ended with code $?" finished.log
  grep -q 'nothing left to do: .*straight is at step 12 of 12' finished.log || fail "nothing says that the run is done" finished.log
  [[ $(cd straight && find . -type f -exec sha256sum {} + | sort) == "$before" ]] || fail "a finished run was changed" finished.log
  must_train straight "${model[@]}" --train.steps 14 --resume
  [[ $(metrics last_step straight/metrics.jsonl) -eq 14 ]] || fail "more steps do not continue it" straight.log
  passed "--resume of a finished run changes nothing, and more steps continue it"
}

long=(--train.steps 80 --train.checkpoint_every 5)

# Killed three times, also while it saves: a checkpoint is written at every step here.
killed() {
  must_train alone "${model[@]}" "${long[@]}"
  for step in 12 30 47; do
    "$bin/train" "${text[@]}" --train.out "$work/killed" "${model[@]}" "${long[@]}" --train.checkpoint_every 1 --resume >>killed.log 2>&1 &
    local pid=$!
    wait_for_step killed "$step" "$pid"
    kill -9 "$pid"
    wait "$pid" 2>/dev/null && fail "the run outlived kill -9" killed.log
  done
  must_train killed "${model[@]}" "${long[@]}" --resume
  same_run alone killed
  passed "kill -9 at steps 12, 30 and 47, each time --resume: the losses of a run left alone"
}

stopped() {
  for signal in TERM USR1 INT; do
    local step=20
    [[ $signal == TERM ]] || step=$(($(metrics last_step stopped/metrics.jsonl) + 5))
    # A background job of a script ignores SIGINT unless it asks for it; a shell of its own does.
    (trap - INT; exec "$bin/train" "${text[@]}" --train.out "$work/stopped" "${model[@]}" "${long[@]}" --resume) >>stopped.log 2>&1 &
    local pid=$!
    wait_for_step stopped "$step" "$pid"
    kill -"$signal" "$pid"
    wait "$pid" || fail "SIG$signal: the run ended with code $?" stopped.log
    local at
    at=$(sed -n 's/^stopped at step \([0-9]*\) of 80; continue with --resume$/\1/p' stopped.log | tail -n 1)
    [[ $at -lt 80 ]] || fail "SIG$signal did not stop the run" stopped.log
    [[ -f stopped/checkpoints/$(printf 'step-%08d' "$at")/MANIFEST.json ]] || fail "SIG$signal: no checkpoint of step $at" stopped.log
  done
  must_train stopped "${model[@]}" "${long[@]}" --resume
  same_run alone stopped
  passed "SIGTERM, SIGUSR1 and SIGINT: saved, exit code 0, and --resume goes on"
}

# An evaluation that would take minutes is left at the next batch: before the first step, where nothing is to be saved,
# and in mid-run.
stopped_in_evaluation() {
  local half=(--data.holdout_fraction 0.5)     # so that there is enough to evaluate on
  local wide=(--config tiny_moe --model.n_embd 256 --model.n_layer 8 --train.eval_tokens 100000000 --train.steps 6 "${half[@]}")
  local begin pid
  train_in_background() { "$bin/train" "${text[@]}" --train.out "$work/$1" "${@:2}" >"$1.log" 2>&1 & pid=$!; }
  # stops_soon RUN STEPS SAYS
  stops_soon() {
    begin=$SECONDS
    kill -TERM "$pid"
    wait "$pid" || fail "SIGTERM in an evaluation: the run ended with code $?" "$1.log"
    [[ $((SECONDS - begin)) -le 20 ]] || fail "SIGTERM in an evaluation took $((SECONDS - begin)) s" "$1.log"
    grep -q "^stopped at step $2 of 6; $3" "$1.log" || fail "nothing says that the run stopped" "$1.log"
  }
  train_in_background evaluating "${wide[@]}"
  until [[ -e evaluating/metrics.jsonl ]]; do
    kill -0 "$pid" 2>/dev/null || fail "it ended before its first evaluation" evaluating.log
    sleep 0.05
  done
  sleep 0.5
  stops_soon evaluating 0 'nothing to save yet'
  [[ ! -s evaluating/metrics.jsonl ]] || fail "the evaluation ended before the signal: this test needs a wider model" evaluating.log
  [[ ! -e evaluating/checkpoints ]] || fail "an untrained model was saved"

  must_train evaluated "${wide[@]}" --train.eval_tokens 64 --train.steps 2
  train_in_background evaluated "${half[@]}" --resume --train.eval_tokens 100000000 --train.eval_every 3 --train.steps 6
  wait_for_step evaluated 3 "$pid"
  sleep 0.5
  stops_soon evaluated 3 'continue with --resume'
  [[ -f evaluated/checkpoints/step-00000003/MANIFEST.json ]] || fail "no checkpoint of step 3" evaluated.log
  # What was cut short is made first, then the run goes on.
  must_train evaluated "${half[@]}" --resume --train.eval_tokens 64 --train.eval_every 3 --train.steps 4
  metrics value evaluated/metrics.jsonl eval 3 loss >/dev/null || fail "the resumed run did not make the evaluation of step 3" evaluated.log

  # The last one too, which --resume makes, and then has nothing left to do.
  cp -r evaluated over
  train_in_background over "${half[@]}" --resume --train.eval_tokens 100000000 --train.eval_every 0 --train.steps 6
  wait_for_step over 6 "$pid"
  sleep 0.5
  stops_soon over 6 'before its last evaluation; --resume makes it'
  must_train over "${half[@]}" --resume --train.eval_tokens 64
  metrics value over/metrics.jsonl eval 6 loss >/dev/null || fail "--resume did not make the last evaluation" over.log
  must_train over "${half[@]}" --resume --train.eval_tokens 64
  grep -q 'nothing left to do' over.log || fail "the last evaluation is made again and again" over.log
  passed "SIGTERM in an evaluation ends it at the next batch: nothing to save at step 0, step 3 saved; --resume makes it"
}

# Everything that moves with the step or is kept between steps: biases, their counts, ramps, resets, capacities, noise.
# Resumed in the middle of the ramps, just before the reset that step 5 begins with, and just after it.
with_routing_state() {
  local run=(--train.steps 12 --router.topk_method noaux_tc --router.bias_balancing true --router.bias_update_rate 0.01
             --router.init normal --router.noise gumbel --router.aux_ramp_steps 8 --router.aux_ramp_start 1 --router.aux_ramp_end 5
             --router.seq_balance_coef 0.001 --router.reset_interval 5 --moe.capacity_factor 1.25 --moe.capacity_ramp_steps 8
             --log.routing layer --log.dead_window 4)
  must_train moving "${model[@]}" "${run[@]}"
  [[ $(metrics value moving/metrics.jsonl train 12 resets) -eq 2 ]] || fail "routers did not start anew at steps 5 and 10" moving.log
  must_train saved "${model[@]}" "${run[@]}" --train.checkpoint_every 1 --train.keep_checkpoints 12
  same_run moving saved
  for at in 3 5 6; do
    cp -r saved "again$at"
    for later in $(seq $((at + 1)) 12); do rm -r "again$at/checkpoints/$(printf 'step-%08d' "$later")"; done
    must_train "again$at" --config tiny_moe --resume
    grep -q "resumed .* at step $at" "again$at.log" || fail "it did not resume at step $at" "again$at.log"
    same_run moving "again$at"
  done
  passed "biases, ramps, resets, capacities and noise go on over a resume at steps 3, 5 and 6, bit for bit"
}

# A checkpoint from before a feature was turned on: it is said, and the run goes on.
without_routing_state() {
  must_train plain "${model[@]}" --train.steps 4 --train.checkpoint_every 2 --train.keep_checkpoints 3
  [[ ! -e plain/checkpoints/step-00000002/routing.safetensors ]] || fail "a run that keeps nothing of routing saved some"
  rm -r plain/checkpoints/step-00000004
  must_train plain --config tiny_moe --resume --router.topk_method noaux_tc --router.bias_balancing true
  grep -q 'step-00000002 was saved without router.bias' plain.log || fail "nothing says that the biases start anew" plain.log
  "$bin/evaluate" --checkpoint plain --device cpu >evaluate.log 2>&1 || fail "evaluation of a biased router failed" evaluate.log
  passed "a checkpoint without biases resumes, and says that they start anew"
}

from_a_checkpoint
random_routing
with_routing_state
without_routing_state
without_the_config
finished
killed
stopped
stopped_in_evaluation
