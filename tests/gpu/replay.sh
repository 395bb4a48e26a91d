#!/usr/bin/env bash
# Replayed steps against eager ones while what routing depends on moves: each case is trained with CUDA graphs and
# without, and compared by every loss, every count and all that the last checkpoint holds. Prints a table.
#   replay.sh [--only TEXT] [--jobs N] [--device cuda|cpu] [--second "OPTION…"]
#     --only     cases whose name contains TEXT           --jobs     cases at a time (default: half the cores, up to 8)
#     --device   cpu: both runs are eager                 --second   more options for the second run, to plant a difference
# A case passes where all bits are equal. Where they are not, the eager run is made again: if it repeats itself bit for
# bit, the case fails; if it does not, losses must lie within 1e-3 of each other.
only='' jobs='' device=cuda second=()
usage() { echo "replay.sh: $1" >&2; sed -n '4,6s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
while (($#)); do
  [[ $1 =~ ^--(only|jobs|device|second)$ ]] || usage "unknown option '$1'"
  (($# > 1)) || usage "$1 needs a value"
  case $1 in
    --only) only=$2 ;;
    --jobs) [[ $2 =~ ^[1-9][0-9]*$ ]] || usage "--jobs $2 is no number of cases"; jobs=$2 ;;
    --device) [[ $2 == cuda || $2 == cpu ]] || usage "--device $2 is neither cuda nor cpu"; device=$2 ;;
    --second) read -ra second <<<"$2" ;;
  esac
  shift 2
done
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
[[ $device == cpu ]] || nvidia-smi -L 2>/dev/null | grep -q '^GPU' || skip "no GPU"
[[ -n $jobs ]] || { jobs=$(($(nproc) / 2)) && jobs=$((jobs < 1 ? 1 : jobs > 8 ? 8 : jobs)); }

# Two micro-batches of 512 tokens a step; recording ends with the third step, so schedules move on into replay.
model=(--config tiny_moe --device "$device" --precision.mode "$([[ $device == cpu ]] && echo fp32 || echo bf16)"
       --model.n_embd 128 --model.head_dim 64 --model.seq_len 128 --train.batch_tokens 1024 --train.micro_batch 4
       --moe.n_experts 8 --router.init normal --log.routing layer --train.log_every 1)
bias='--router.topk_method noaux_tc --router.bias_balancing true --router.bias_update_rate 0.01 --router.balance_coef 0.001'
ramp='--moe.capacity_factor 1.25 --moe.min_expert_capacity 32 --moe.capacity_ramp_steps 8'
cases=(
  "plain|12|"
  "capacity ramp, drop|12|$ramp"
  "capacity by weight, renormalised|12|--moe.capacity_factor 1 --moe.drop_policy weight --moe.renormalize_after_drop true"
  "capacity by importance, null copy|12|$ramp --moe.drop_policy importance --moe.token_importance learned --moe.overflow null_expert --moe.null_expert copy"
  "null expert, constant|12|$ramp --moe.overflow null_expert --moe.null_expert constant"
  "null expert, ffn|12|$ramp --moe.overflow null_expert --moe.null_expert ffn"
  "reroute, 2 rounds|12|$ramp --moe.overflow reroute --moe.reroute_rounds 2"
  "warm-up, blend|12|--moe.warmup_steps 8"
  "warm-up, dense average|12|--moe.warmup_steps 5 --moe.warmup_mode dense_average --moe.n_shared_experts 1"
  "Gumbel noise|12|--router.noise gumbel"
  "jitter|12|--router.noise jitter --router.noise_scale 0.1"
  "bias update|12|$bias"
  "bias update, groups, Gaussian noise|12|$bias --router.n_group 4 --router.topk_group 2 --router.noise gaussian"
  "whole-expert dropout|12|--moe.expert_dropout 0.2"
  "hidden dropout|12|--moe.expert_hidden_dropout 0.1 --model.dropout 0.1"
  "loss ramp, z and sequence losses|12|--router.aux_ramp_steps 8 --router.aux_ramp_end 5 --router.z_loss_coef 0.001 --router.seq_balance_coef 0.001"
  "injected losses|12|--moe.aux_injection autograd --router.aux_ramp_steps 8"
  "router reset|12|--router.reset_interval 5"
  "semantic router|12|--router.semantic true"
  "token_id router|12|--router.type token_id --router.init zeros"
  "zero experts|12|--moe.zero_experts.zero 1 --moe.zero_experts.copy 1 --moe.zero_experts.constant 1"
  "flexible FFN, parallel block|12|--moe.flexible_ffn true --moe.warmup_steps 8 --model.block parallel"
  "INL|12|--model.inl.enabled true"
  "INL, lite, one a block|12|--model.inl.enabled true --model.inl.mode lite --model.inl.shared false"
  "recompute experts|12|--train.recompute moe --moe.expert_hidden_dropout 0.1"
  "recompute blocks|12|--train.recompute block --router.noise gumbel --model.dropout 0.1 --model.inl.enabled true"
  "all that moves|50|$bias $ramp --moe.overflow reroute --router.noise gumbel --moe.expert_dropout 0.1 --moe.warmup_steps 30 --router.aux_ramp_steps 30 --router.aux_ramp_end 3 --router.reset_interval 20 --optim.schedule.warmup_steps 10 --optim.muon.momentum_warmup_steps 30 --model.dropout 0.1"
)

# one RUN GRAPH STEPS OPTION…: trains, in one fixed order where torch has one for all that it computes; the reason it did
# not work in RUN.why
one() {
  local run=$1 graph=$2 steps=$3 ordered code
  shift 3
  for ordered in true false; do
    timeout --foreground 300 "$bin/train" "${text[@]}" --train.out "$work/$run" "${model[@]}" --train.cuda_graph "$graph" \
      --train.steps "$steps" --train.deterministic "$ordered" "$@" >"$run.log" 2>&1 && return
    code=$?
    grep -q 'deterministic implementation' "$run.log" || break
  done
  echo "exit code $code: $(grep -iE 'error|failed|asserti' "$run.log" | tail -n 1 | cut -c 1-140)" >"$run.why"
  return 1
}

# compare INDEX NAME STEPS OPTION…: prints a line of the table; INDEX.failed is there where the case does not pass
compare() {
  local index=$1 name=$2 steps=$3 graph=true apart verdict code
  shift 3
  [[ $device == cuda && $name != *'dense average'* ]] || graph=auto     # its averaging steps are never captured
  if ! one "$index.a" "$graph" "$steps" "$@" || ! one "$index.b" false "$steps" "$@" "${second[@]}"; then
    verdict="FAILED, $(cat "$index".[ab].why)"
  elif grep -q 'the step runs without CUDA graphs' "$index.a.log"; then
    verdict="FAILED, nothing was replayed: $(grep -o 'the step runs without.*' "$index.a.log" | cut -c 1-120)"
  else
    apart=$(metrics apart "$index.a" "$index.b" 1e-3)
    code=$?
    case $code in
      0) verdict=equal ;;
      3) if one "$index.c" false "$steps" "$@" "${second[@]}" && metrics apart "$index.b" "$index.c" 1e-3 >"$index.eager"; then
           verdict='FAILED: eager steps repeat bit for bit'
         else
           verdict="close; eager against eager: $(awk '{print $1}' "$index.eager")"
         fi ;;
      *) verdict="FAILED" ;;
    esac
  fi
  [[ $verdict != FAILED* ]] || : >"$index.failed"
  # shellcheck disable=SC2086  # four words, a column each
  printf '%-36s %5s %10s %10s %8s %10s   %s\n' "$name" "$steps" ${apart:-- - - -} "$verdict"
}

one data false 1 || fail "not even a plain step works: $(cat data.why)" data.log       # and cuts the text once for all
printf '%-36s %5s %10s %10s %8s %10s\n' "" "" "loss" "first at" "tensors" "kept"
printf '%-36s %5s %10s %10s %8s %10s\n' "case" "steps" "apart" "step" "differ" "apart"
chosen=0
for index in "${!cases[@]}"; do
  IFS='|' read -r name steps options <<<"${cases[index]}"
  [[ $name == *"$only"* ]] || continue
  read -ra options <<<"$options"
  while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
  compare "$index" "$name" "$steps" "${options[@]}" &
  chosen=$((chosen + 1))
done
wait
((chosen > 0)) || fail "no case's name contains '$only'"
failed=$(find . -maxdepth 1 -name '*.failed' | wc -l)
((failed == 0)) || fail "$failed of $chosen cases"
passed "$chosen cases: replayed steps are eager steps"
