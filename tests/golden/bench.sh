#!/usr/bin/env bash
# bench moe, moe-vs-mlp and routing give their figures on a CPU, bench text its text, a run the parts of its steps, forced
# imbalance its ratio; wrong arguments are named.
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
for spread in 0=1.0 0.5=1.939; do
  "$bin/bench" moe --device cpu --repeats 1 --shape 1024,32,24,8,2 --spread ${spread%=*} --json result.json >output 2>&1 ||
    fail "bench moe --spread ended with code $?" output
  python3 -c 'import json, sys; assert abs(json.load(open("result.json"))["shapes"][0]["largest_over_mean_load"] - float(sys.argv[1])) < 0.02' \
    ${spread#*=} || fail "--spread ${spread%=*} gives other shares" result.json
done
passed "bench moe: a row and positive figures for every shape"

"$bin/bench" moe-vs-mlp --device cpu --tokens 33 64 --experts 1 4 --top-k 1 2 --width 32 --active 64 --repeats 3 \
  --json result.json >output 2>&1 || fail "bench moe-vs-mlp ended with code $?" output
python3 - result.json output <<'EOF' || fail "bench moe-vs-mlp gives not what it should" output
import json, sys
shapes = json.load(open(sys.argv[1]))["shapes"]
assert [(s["tokens"], s["experts"], s["topk"], s["hidden"]) for s in shapes] == \
    [(t, e, k, 64 // k) for t in (33, 64) for e, k in ((1, 1), (4, 1), (4, 2))], shapes
for shape in shapes:
    assert [run["backend"] for run in shape["runs"]] == ["mlp", "cpu", "reference"], shape
    flops = 2 * 3 * shape["tokens"] * 32 * 64
    for run in shape["runs"]:
        assert 0 < run["fwd_ms"] < run["fwd_bwd_ms"], run
        assert abs(run["fwd_tflops"] * run["fwd_ms"] * 1e9 / flops - 1) < 1e-6, run
        assert abs(run["fwd_bwd_tflops"] * run["fwd_bwd_ms"] * 1e9 / flops - 3) < 1e-6, run
        assert abs(run["tokens_per_s"] * run["fwd_bwd_ms"] * 1e-3 / shape["tokens"] - 1) < 1e-6, run
        assert 0 <= max(run["output_error"], run["gradient_error"]) < 1e-5, run
    assert shape["runs"][2]["output_error"] == shape["runs"][2]["gradient_error"] == 0, shape
rows = [line.split() for line in open(sys.argv[2])]
assert [row[-8] for row in rows if row and row[0] in ("33", "64") and row[-8] in ("cpu", "reference")] == \
    ["cpu", "reference"] * 6, rows
EOF
passed "bench moe-vs-mlp: the dense MLP and every backend for every combination, with its error"

"$bin/bench" routing --device cpu --repeats 2 --shape 64,32,24,8,2 --shape 33,16,8,5,1 --json result.json >output 2>&1 ||
  fail "bench routing ended with code $?" output
python3 - result.json output <<'EOF' || fail "bench routing gives not what it should" output
import json, sys
result = json.load(open(sys.argv[1]))
rate = result["copy_gb_per_s"] * 1e3  # bytes a microsecond
for shape, (t, d, n, e, k) in zip(result["shapes"], ((64, 32, 24, 8, 2), (33, 16, 8, 5, 1))):
    assert tuple(shape[key] for key in ("tokens", "n_embd", "hidden", "experts", "topk")) == (t, d, n, e, k), shape
    parts = {part["name"]: part for part in shape["parts"]}
    assert list(parts) == ["gather-sum", "plan", "scores, top-k, counts", "router product", "all"], parts
    for passes in ("fwd", "bwd"):
        floors = [part[passes + "_floor_us"] for part in shape["parts"]]
        assert abs(sum(floors[:-1]) / floors[-1] - 1) < 1e-6 and parts["all"][passes + "_us"] > 0, shape
    assert abs(parts["router product"]["fwd_floor_us"] * rate / (4 * (t * d + t * e + e * d)) - 1) < 1e-6, parts
    assert abs(parts["scores, top-k, counts"]["bwd_floor_us"] * rate / (8 * t * (e + k)) - 1) < 1e-6, parts
    features = {feature["name"]: feature for feature in shape["features"]}
    assert len(features) == (39 if e == 8 else 36), len(features)
    assert ("groups, greedy" in features) == (e == 8), features
    for feature in features.values():
        assert "failure" not in feature and feature["fwd_us"] > 0, feature
        assert feature["fwd_added_us"] < feature["fwd_us"], feature
    assert features["capacity: reroute"]["options"] == "--moe.capacity_factor 1 --moe.overflow reroute", features
    against = {name: feature["against"] for name, feature in features.items()}
    assert against["capacity: reroute"] == "capacity" and against["zero experts: copy"] == "a zero expert", against
    assert against["capacity: drop"] == against["z-loss"] == "", against
rows = [line for line in open(sys.argv[2]) if line.endswith("   with products\n")]
assert len(rows) == 8, rows
EOF
"$bin/bench" routing --device cpu --repeats 1 --shape 64,32,24,8,2 --only noise >output 2>&1 || fail "--only noise ended with code $?" output
[[ $(grep -cE '^(Gumbel|Gaussian|groups, Gumbel) noise' output) -eq 3 ]] || fail "--only noise gives other features" output
passed "bench routing: every part with its floor, every feature with what it adds"

python3 "$here/../benchmarks/side_by_side.py" --imbalance 0.5 --bin "$bin" --rounds 2 --steps 8 --micro-batch 4 \
  --ours "$(printf '%q ' "${text[@]}")" --json result.json tiny_moe >output 2>&1 || fail "--imbalance ended with code $?" output
python3 - result.json output <<'EOF' || fail "--imbalance gives not what it should" output
import json, sys
runs = json.load(open(sys.argv[1]))["runs"]["tiny_moe"]
for kind, load in (("equal", 1), ("unequal", 1.617)):       # 4 experts: e^(sigma z) over its mean, z = 1.1503 at 7/8
    assert len(runs[kind]) == 2 and all(abs(run[key] - load) < 0.01 for run in runs[kind] for key in ("load", "load_worst")), runs
ratio = float(open(sys.argv[2]).read().split("with equal shares: ")[1].split(",")[0])
middle = json.load(open(sys.argv[1]))["medians"]["tiny_moe"]
assert abs(ratio - middle["unequal"]["tokens_per_s"] / middle["equal"]["tokens_per_s"]) < 1e-3, ratio
EOF
passed "side_by_side.py --imbalance: experts have the shares that were asked for, in whole steps"

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

"$bin/bench" text --out text.safetensors --micro-batches 3 --config tiny_dense --train.micro_batch 2 "${text[@]}" \
  >output 2>&1 || fail "bench text ended with code $?" output
python3 - text.safetensors <<'EOF' || fail "bench text writes not what it should" output
import json, struct, sys
held = open(sys.argv[1], "rb").read()
start = 8 + struct.unpack("<Q", held[:8])[0]
entry = json.loads(held[8:start])["text"]
m, b, s1 = entry["shape"]
assert (m, b) == (3, 2) and entry["dtype"] == "I32" and s1 % 2 == 1, entry
tokens = struct.unpack(f"<{m * b * s1}i", held[start:])
windows = [tokens[i * s1:(i + 1) * s1] for i in range(m * b)]
assert len(set(windows)) == m * b and 0 <= min(tokens) and max(tokens) < 512, windows
EOF
passed "bench text: so many micro-batches of different windows"

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
bad 'choose a multiple of 24' moe-vs-mlp --top-k 3 --active 64
bad '--experts 0 is not from 1' moe-vs-mlp --experts 0
bad 'every --top-k exceeds every --experts' moe-vs-mlp --experts 2 --top-k 4
bad '3 numbers instead of 5' routing --shape 64,32,24
bad 'repeats' routing --repeats 0
bad '--out is required' text
bad 'did you mean moe.n_experts' text --out text --moe.n_expert 3
bad 'Value 11 not in range' moe --spread 11
bad '--backend tpu is not one of CPU' moe-vs-mlp --device cpu --backend tpu
[[ -e /dev/nvidia0 ]] || bad 'GPU' ops
passed "bench: wrong arguments are named"
