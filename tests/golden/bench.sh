#!/usr/bin/env bash
# bench moe gives its figures on a CPU and a run the parts of its steps; wrong arguments are named.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"

for activation in swiglu relu2; do
  "$bin/bench" moe --device cpu --repeats 3 --activation $activation --shape 64,32,24,4,2 --shape 33,16,8,5,1 \
    --json result.json >output 2>&1 || fail "bench moe ended with code $?" output
  [[ $(grep -cE '^ *(64|33) .* [0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+$' output) -eq 2 ]] || fail "a shape has no row" output
  python3 - result.json $activation <<'EOF' || fail "bench moe --json is not what it should be" result.json
import json, sys
result = json.load(open(sys.argv[1]))
assert result["activation"] == sys.argv[2] and result["precision"] == "fp32", result
assert [tuple(s[k] for k in ("tokens", "n_embd", "hidden", "experts", "topk")) for s in result["shapes"]] == \
    [(64, 32, 24, 4, 2), (33, 16, 8, 5, 1)]
for shape in result["shapes"]:
    assert 1 <= shape["largest_over_mean_load"] <= shape["experts"], shape
    flops = 2 * (3 if sys.argv[2] == "swiglu" else 2) * shape["tokens"] * shape["topk"] * shape["n_embd"] * shape["hidden"]
    for part in ("experts_only", "with_router"):
        p = shape[part]
        assert p["fwd_ms"] > 0 and p["bwd_ms"] > 0, p
        assert abs(p["fwd_tflops"] * p["fwd_ms"] * 1e9 / flops - 1) < 1e-6, p
        assert abs(p["bwd_tflops"] * p["bwd_ms"] * 1e9 / flops - 2) < 1e-6, p
EOF
done
passed "bench moe: a row and positive figures for every shape"

must_train timed --config tiny_dense --train.steps 3 --train.log_every 1
python3 - timed/metrics.jsonl <<'EOF' || fail "the parts of a step do not add up" timed/metrics.jsonl
import json, sys
rows = [row for row in map(json.loads, open(sys.argv[1])) if row["kind"] == "train"]
assert len(rows) == 3, rows
for row in rows:
    parts = row["forward_backward_ms"], row["optimizer_ms"]
    assert min(parts) > 0 and sum(parts) <= 1e3 * row["seconds_per_step"], row
EOF
passed "a training line tells of forward and backward, and of the optimizer"

bad() {
  local expected=$1
  shift
  "$bin/bench" "$@" >output 2>&1
  local code=$?
  [[ $code -eq 2 ]] || fail "bench $* ended with code $code, not 2" output
  grep -qF -- "$expected" output || fail "bench $*: nothing says $expected" output
}
bad 'subcommand'
bad '3 numbers instead of 5' moe --shape 64,32,24
bad "'x' is no number" moe --shape 64,32,x,4,2
bad '0 is not from 1' moe --shape 64,32,0,4,2
bad 'multiples of 8' moe --shape 64,30,24,4,2
bad 'K is at most E' moe --shape 64,32,24,4,5
bad 'gelu' moe --activation gelu
bad '--shap' moe --shap 64,32,24,4,2
[[ -e /dev/nvidia0 ]] || bad 'GPU' ops
passed "bench: wrong arguments are named"
