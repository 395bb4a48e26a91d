#!/usr/bin/env bash
# benchmarks/side_by_side.py --checkpoint: the PyTorch peer takes the weights of a checkpoint and the text of ours, and
# finds the same loss and routing. Needs a Python with torch, SWITCHYARD_PYTHON.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
python=${SWITCHYARD_PYTHON:-}
[[ -n $python ]] && "$python" -c 'import torch; torch._grouped_mm' 2>/dev/null ||
  skip "the peer needs a Python with torch 2.11, and '${python:-none given}' is none"
[[ -x $bin/bench ]] || skip "there is no bench beside train"
side=("$python" "$here/../benchmarks/side_by_side.py" --bin "$bin" --rounds 1 --steps 8 --peer-steps 1 --micro-batch 4)
cpu="--device cpu --precision fp32 --no-compile"

must_train run --config tiny_moe --train.steps 20 --router.balance_coef 0 --optim.schedule.warmup_steps 5
"${side[@]}" --checkpoint run --peer "$cpu" --json result.json >output 2>&1 || fail "--checkpoint ended with code $?" output
"$python" - <<'CHECK' || fail "the peer finds not what ours finds" output
import json
result = json.load(open("result.json"))
ours, peer = result["first"]["ours"], result["first"]["peer"]
assert abs(ours["loss"] / peer["loss"] - 1) < 1e-5 and ours["loss"] < 5, result["first"]
for key in ("load", "load_worst"):       # in fp32 a token of two thousand may tie within rounding
    assert ours[key] > 1.02 and abs(ours[key] / peer[key] - 1) < 0.01, result["first"]
for told in (result["runs"]["tiny_moe"]["ours"][0], result["runs"]["tiny_moe"]["peer"][0]["last"]):
    assert abs(told["loss"] / ours["loss"] - 1) < 0.1, told      # other text, the same model: it was 20% off at usual rates
both = result["medians"]["tiny_moe"]
assert min(both[who]["tokens_per_s"] for who in both) > 0 and not result["failure"], result
CHECK
passed "--checkpoint: the same loss and the same load of experts from the same weights and text"

"${side[@]}" --checkpoint run --peer "$cpu --n-kv-head 2" >output 2>&1 && fail "another model was taken" output
grep -q 'values: \[512, 64\] is not \[512, 32\]' output || fail "nothing says which weights are another model's" output
must_train other --config tiny_moe --train.steps 2 --model.logit_softcap 7
"${side[@]}" --checkpoint other --peer "$cpu" >output 2>&1 && fail "a cap that the peer has not was taken" output
grep -q 'no counterpart of model.logit_softcap' output || fail "nothing says what the peer has not" output
"${side[@]}" --checkpoint nothing >output 2>&1 && fail "no checkpoint was taken" output
grep -q 'there is no checkpoint' output || fail "nothing says that there is no checkpoint" output
passed "--checkpoint: what the peer cannot be compared with is named"

for kind in moe dense; do   # with what the peer has, too; without experts moe.use_moe is false
  "$python" - "$here/../configs/tiny_$kind.json" small_$kind.json <<'SMALL'
import json, sys
config = json.load(open(sys.argv[1]))
small = {group: config[group] for group in ("model", "moe", "router") if group in config}
if not small.get("moe", {}).get("use_moe"):
    small.pop("moe", None)
small["train"] = {key: config["train"][key] for key in ("batch_tokens", "micro_batch")}
json.dump(small, open(sys.argv[2], "w"))
SMALL
done
"${side[@]}" --ours "--device cpu --precision.mode fp32" --peer "$cpu" --compile-together 2 --json result.json \
  small_moe.json small_dense.json >output 2>&1 || fail "two configs ended with code $?" output
"$python" - <<'CHECK' || fail "two configs give not what they should" output
import json
for name, runs in json.load(open("result.json"))["runs"].items():
    for who in ("ours", "peer"):
        assert len(runs[who]) == 1 and runs[who][0]["tokens_per_s"] > 0, (name, runs)
CHECK
grep -q 'tokens/s of our small_moe: .* of the peer.s small_dense' output || fail "the two are not compared with each other" output
grep -q 'start-up in round 1' output && fail "a start-up counts no compilation, and is given as if it did" output
passed "two configs: peers started together, each beside ours, ours beside the other's peer"
