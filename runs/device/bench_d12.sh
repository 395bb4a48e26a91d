#!/usr/bin/env bash
# Ours and the PyTorch peer on this GPU, one after the other, d12 8x2 at 65,536 tokens a micro-batch, 524,288 a step.
# Usage: runs/device/bench_d12.sh BIN_FOLDER [STEPS]        prints one line of figures each
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${1:?folder of the built programs}
steps=${2:-16}
out=$(mktemp -d)
run_ours() {      # name, options…
  local name=$1; shift
  local began=$EPOCHREALTIME
  "$bin/train" --train.out "$out/$name" --data.cache "$out/cache" --train.micro_batch 64 --train.steps "$steps" \
    --train.log_every 4 --train.eval_every 0 --train.eval_tokens 65536 --train.sample_tokens 1 "$@" > "$out/$name.log" 2>&1 \
    || { tail -30 "$out/$name.log"; return 1; }
  grep -E 'first step done|^step' "$out/$name.log" | tail -3
  python3 - "$out/$name/metrics.jsonl" "$name" "$began" <<'PY'
import json, statistics, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
rows = [r for r in rows if r["kind"] == "train"][2:]
print(sys.argv[2], json.dumps({"tokens_per_s": round(statistics.median(r["tokens_per_s"] for r in rows)),
      "mfu": round(statistics.median(r["mfu"] for r in rows), 4), "memory_gib": round(max(r["memory_bytes"] for r in rows) / 2**30, 1),
      "loss_last": rows[-1]["loss"]}))
PY
}
run_ours moe_8x2 --config moe_8x2.json
run_ours dense_d12 --config dense_d12.json
python3 benchmarks/peer_torch.py --model moe --steps 8 2>/dev/null | tail -1
python3 benchmarks/peer_torch.py --model dense --steps 8 2>/dev/null | tail -1
