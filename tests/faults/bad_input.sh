#!/usr/bin/env bash
# What a user can get wrong: one message that names it and says what would be right, exit code 2, nothing created. Every
# command line is run in an empty folder, which must stay empty.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
inputs=$(mktemp -d) failures=0 cases=0
trap 'rm -rf "$work" "$inputs"' EXIT

# expect CODE TEXT ARGUMENT…: the exit code of train, and a part of what it writes; parts are divided by |
expect() {
  local code=$1 parts problem='' got
  IFS='|' read -ra parts <<<"$2"
  shift 2
  timeout 60 "$bin/train" "$@" >"$inputs/output" 2>&1
  got=$?
  [[ $got -eq $code ]] || problem="exit code $got, not $code"
  for part in "${parts[@]}"; do grep -qF -- "$part" "$inputs/output" || problem+="; nothing says: $part"; done
  [[ -z $(ls -A) ]] || problem+="; it created $(ls -A | tr '\n' ' ')"
  cases=$((cases + 1))
  rm -rf "${work:?}"/* "${work:?}"/.[!.]*
  [[ -n $problem ]] || return 0
  failures=$((failures + 1))
  echo "FAILED: train $*"
  echo "  ${problem#; }. It wrote:"
  head -n 8 "$inputs/output" | cut -c1-300 | sed 's/^/  | /'
}
# file NAME TEXT: a config file; prints its path
file() { printf '%s' "$2" >"$inputs/$1" && echo "$inputs/$1"; }
tiny() { expect 2 "$1" --config tiny_moe "${text[@]}" "${@:2}"; }

# Keys and values
tiny 'unknown option --router.topk|did you mean router.top_k?' --router.topk 2
tiny 'unknown option --n_experts|moe.n_experts' --n_experts 2
tiny 'unknown option --resum|--resume' --resum
tiny '--moe.n_experts lacks its value' --moe.n_experts
tiny 'unexpected argument "quickstart.json"|--config quickstart.json' quickstart.json
tiny 'router.top_k = two|give an integer' --router.top_k two
tiny 'train.steps|2.5' --train.steps 2.5
tiny 'router.top_k|0' --router.top_k 0
tiny 'model.dropout|1.5' --model.dropout 1.5
tiny 'optim.muon.lr|-1' --optim.muon.lr -1
tiny 'model.mlp|relu3|relu2' --model.mlp relu3
for form in '--moe.use_moe=maybe' '--moe.use_moe maybe'; do
  # shellcheck disable=SC2086
  tiny 'moe.use_moe = maybe|is neither true nor false; give true or false' $form
done
tiny 'train.steps|99999999999999999999' --train.steps 99999999999999999999
tiny 'device|tpu|auto' --device tpu
tiny 'device = "gpu"|did you mean cuda?' --device gpu
tiny '--precision is a group of keys|write --precision.mode VALUE' --precision fp32
tiny '--router is a group of keys' --router 3

# Rules across keys
tiny 'router.top_k = 9 exceeds moe.n_experts = 4; choose 1 to 4' --router.top_k 9
tiny 'train.batch_tokens = 500|multiple|train.micro_batch 4|model.seq_len 64' --train.batch_tokens 500
tiny 'model.n_embd = 100|model.head_dim = 16|96 or 112' --model.n_embd 100
tiny 'model.n_kv_head = 3 does not divide model.n_head = 4' --model.n_kv_head 3
tiny 'moe.d_expert|moe.expert_hidden_mult|give one' --moe.d_expert 96
tiny 'precision.mode = fp8 needs a GPU|device = cpu' --precision.mode fp8
tiny 'train.cuda_graph = true needs a GPU' --train.cuda_graph true
tiny 'moe.backend = cuda|device = cpu' --moe.backend cuda
tiny 'optim.schedule.warmup_steps = 20|train.steps = 20' --optim.schedule.warmup_steps 20
tiny 'train.resume = true|train.init_from|give one of them' --resume --init_from elsewhere
tiny 'name = "a/b"' --name a/b
tiny 'moe.first_dense = 2 leaves no sparse layer' --moe.first_dense 2
tiny 'router.n_group = 3 does not divide moe.n_experts = 4; choose 1, 2 or 4' --router.n_group 3
tiny 'router.n_group = 2|groups would be ignored' --router.n_group 2 --router.topk_method greedy
tiny 'router.bias_balancing = true|never be read; choose topk_method noaux_tc' --router.bias_balancing true --router.topk_method greedy
tiny 'router.norm_topk_prob = true|router.score = identity' --router.score identity --router.norm_topk_prob true
tiny 'router.balance_coef = 0.5 has no learned router|router.type = token_id' --router.type token_id --router.balance_coef 0.5
tiny 'router.init = zeros|router.semantic = true' --router.semantic true --router.init zeros
tiny 'moe.overflow is set, but no expert is ever full|moe.capacity_factor = 0' --moe.overflow reroute
tiny 'moe.expert_capacity = 8|moe.capacity_factor = 1.25|give one of them' --moe.expert_capacity 8 --moe.capacity_factor 1.25
tiny 'moe.drop_policy = importance|moe.token_importance = none' --moe.capacity_factor 1 --moe.drop_policy importance
tiny 'moe.segments = 3 does not divide|128' --moe.segments 3
tiny 'moe.warmup_steps = 20|train.steps = 20' --moe.warmup_steps 20
tiny 'moe.flexible_ffn = true|moe.use_moe = false' --moe.use_moe false --moe.flexible_ffn true
tiny 'router.force_balanced = true|router.noise = gumbel' --router.force_balanced true --router.noise gumbel
tiny 'model.inl is unstable|beta_max = 25' --model.inl.enabled true --model.inl.beta_max 25

# Config files
expect 2 'no --config; e.g. --config quickstart.json'
expect 2 'no --config; e.g. --config quickstart.json' --model.n_layer 2 --device cpu
expect 2 '--resume: runs/out/run holds no checkpoint|--train.out FOLDER|--config NAME' --resume
expect 2 '--resume: elsewhere holds no checkpoint' --resume --train.out elsewhere
expect 2 '--config no_such: no such file|configs/no_such.json' --config no_such
expect 2 'did you mean tiny_moe?' --config tiny_moa
expect 2 '--config /tmp: is a folder' --config /tmp
expect 2 '--config lacks its value, NAME' --config
expect 2 'bad.json:3:' --config "$(file bad.json $'{\n  "model": {"n_layer": 2},\n  "train": {"steps": 5,}\n}\n')"
expect 2 'malformed JSON|:1:' --config "$(file cut.json '{"model": {"n_layer": 2')"
expect 2 'empty.json:1:1: malformed JSON' --config "$(file empty.json '')"
expect 2 'a config is a JSON object' --config "$(file list.json '[1, 2]')"
expect 2 'unknown key moe.num_experts|moe.n_experts' --config "$(file alias.json '{"moe": {"num_experts": 8}}')"
expect 2 'unknown key modell|model' --config "$(file group.json '{"modell": {"n_layer": 2}}')"
expect 2 'model = 3 is a group of keys' --config "$(file number.json '{"model": 3}')"
expect 2 '"steps" stands twice' --config "$(file twice.json '{"train": {"steps": 5, "steps": 6}}')"
expect 2 'router.top_k|"two"' --config "$(file type.json '{"router": {"top_k": "two"}}')"

# Text and weights
expect 2 'no/such/folder|torch_python' --config tiny_moe --data.corpus no/such/folder
mkdir "$inputs/nothing" && : >"$inputs/nothing/empty.txt"
expect 2 'is empty: 1 files of 0 bytes; give torch_python, or files' --config tiny_moe --data.cache "$inputs/cache" --data.corpus "$inputs/nothing"
expect 2 'data.tokenizer = "no.model" is not a file' --config tiny_moe --data.corpus "$data/text" --data.tokenizer no.model
tiny 'no checkpoint at nowhere' --init_from nowhere
# A file, and a folder that takes no files from anyone
tiny "train.out = \"$inputs/file/run\" cannot be written|is not a folder|--train.out" --train.out "$(file file x)/run"
[[ ! -d /proc/self ]] || tiny 'train.out = "/proc/x" cannot be written|/proc takes no new files' --train.out /proc/x

# Questions about keys
expect 2 '--explain router.topk|router.top_k' --explain router.topk
expect 0 'router.top_k|Experts that process each token|default  2' --explain router.top_k
expect 0 'router.score|router.balance_coef' --explain router
expect 0 'usage: train|--resume|--explain KEY|router.' --help
expect 0 '"properties"' --schema

# What would run
expect 0 '8,352,270,368|3,520,432,160|21,534,081,024|would train' --config moe_transformer --dry-run
expect 0 '9,157,576,736|4,325,738,528' --config moe_transformer --dry-run --moe.null_expert ffn
expect 0 'moe.segments = 4: moe.n_experts is 32, router.top_k 8, moe.d_expert 384' --config moe_8x2 --dry-run --moe.segments 4
expect 0 '456M|286M|170M|456,206,616|286,337,304|169,869,312|774,305,280|would train' --config moe_8x2 --dry-run
expect 0 '49 converted|210 skipped' --config moe_8x2 --dry-run --precision.mode fp8
expect 0 'warning: precision.fp8_exclude "experts" matches no linear layer' --config moe_8x2 --dry-run --precision.mode fp8 --precision.fp8_exclude experts
expect 0 '49 converted|210 skipped|needs a GPU' --config moe_8x2 --dry-run --precision.mode fp8 --device cpu

[[ $failures -eq 0 ]] || fail "$failures of $cases command lines"
passed "$cases command lines"
