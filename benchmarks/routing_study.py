#!/usr/bin/env python3
"""Small runs of many routing systems on a CPU, as one table: what each does to loss, speed and balance.

    python3 benchmarks/routing_study.py [--bin build/bin] [--seeds 1,2] [--steps 100] [--only REGEX] [--out FOLDER]

Every variant is the same model (3 layers, width 128, 8 experts of which a token visits 2) on the built-in corpus, with the
keys listed in VARIANTS changed. Runs are too short to rank routers by loss; they show costs, balance and failures.
Columns: bits a byte held out (mean over seeds, and half the spread), tokens/s of the last 25 steps, MaxVio of the last interval
(largest load over the mean, less 1; worst layer), dead experts, and the shares of assignments that found no place (dropped, or
sent to the null expert) and that were rerouted.
"""
import argparse
import json
import os
import re
import subprocess
import sys

BASE = {
    "model.n_layer": 3, "model.vocab_size": 2048, "moe.n_experts": 8, "moe.expert_hidden_mult": 2, "router.top_k": 2,
    "train.batch_tokens": 2048, "train.micro_batch": 8, "train.log_every": 25, "train.eval_every": 0,
    "train.eval_tokens": 65536, "train.sample_tokens": 0, "log.routing": "layer",
}
SIGMOID_BIAS = {"router.score": "sigmoid", "router.bias_balancing": True, "router.balance_coef": 0, "router.bias_update_rate": 0.01}
CAPACITY = {"moe.capacity_factor": 1.0}
VARIANTS = {
    "softmax, Switch loss": {},
    "no balance loss": {"router.balance_loss": "none"},
    "CV² of probabilities": {"router.balance_loss": "cv_squared"},
    "sigmoid, Switch loss": {"router.score": "sigmoid"},
    "sigmoid, bias": SIGMOID_BIAS,
    "sigmoid, bias, 2 of 4 groups": {**SIGMOID_BIAS, "router.n_group": 4, "router.topk_group": 2},
    "capacity 1.25, drop": {"moe.capacity_factor": 1.25},
    "capacity 1.0, drop": CAPACITY,
    "capacity 1.0, drop by weight": {**CAPACITY, "moe.drop_policy": "weight"},
    "capacity 1.0, null expert copy": {**CAPACITY, "moe.overflow": "null_expert", "moe.null_expert": "copy"},
    "capacity 1.0, null expert ffn": {**CAPACITY, "moe.overflow": "null_expert", "moe.null_expert": "ffn"},
    "capacity 1.0, reroute": {**CAPACITY, "moe.overflow": "reroute"},
    "Gumbel noise": {"router.noise": "gumbel"},
    "expert dropout 0.1": {"moe.expert_dropout": 0.1},
    "shared expert": {"moe.n_shared_experts": 1},
    "zero experts: 1 zero, 1 copy": {"moe.zero_experts.zero": 1, "moe.zero_experts.copy": 1},
    "cosine router": {"router.semantic": True},
    "token id": {"router.type": "token_id"},
    "INL dynamics": {"model.inl.enabled": True},
}


def text_of(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def run(binary, folder, keys):
    """The run's last lines of each kind, by kind. Raises when the program fails."""
    command = [binary, "--config", "quickstart", "--device", "cpu", "--train.out", folder]
    for key, value in {**BASE, **keys}.items():
        command += [f"--{key}", text_of(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    last = {}
    with open(f"{folder}/metrics.jsonl") as file:
        for line in map(json.loads, file):
            last[line["kind"]] = line
    return last


def diverted(routing, names):
    """Share of the interval's assignments that were diverted so; None where nothing can be."""
    layers = routing["layers"]
    if not any(name in layer for layer in layers for name in names):
        return None
    return sum(layer.get(name, 0) for layer in layers for name in names) / sum(sum(layer["counts"]) for layer in layers)


def percent(shares):
    return "-" if None in shares else f"{100 * sum(shares) / len(shares):.1f}%"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--bin", default=f"{root}/build/bin")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", default="", help="variants whose name matches")
    parser.add_argument("--out", default=f"{root}/runs/out/routing_study")
    options = parser.parse_args()
    os.environ.setdefault("SWITCHYARD_ROOT", root)
    print("| variant | bits a byte | ± | tokens/s | MaxVio | dead | no place | rerouted |\n|---|---|---|---|---|---|---|---|", flush=True)
    for name, keys in VARIANTS.items():
        if not re.search(options.only, name):
            continue
        runs = [run(f"{options.bin}/train", f"{options.out}/{re.sub('[^a-zA-Z0-9]+', '_', name)}_{seed}",
                    {**keys, "train.steps": options.steps, "train.seed": seed}) for seed in options.seeds.split(",")]
        mean = lambda values: sum(values) / len(values)
        bits = [r["eval"]["bits_per_byte"] for r in runs]
        print(f"| {name} | {mean(bits):.4f} | {(max(bits) - min(bits)) / 2:.4f} | {mean([r['train']['tokens_per_s'] for r in runs]):.0f} "
              f"| {mean([max(layer['max_vio'] for layer in r['routing']['layers']) for r in runs]):.2f} "
              f"| {mean([r['train']['dead_experts'] for r in runs]):.1f} "
              f"| {percent([diverted(r['routing'], ('dropped', 'to_null')) for r in runs])} "
              f"| {percent([diverted(r['routing'], ('rerouted',)) for r in runs])} |", flush=True)


if __name__ == "__main__":
    main()
