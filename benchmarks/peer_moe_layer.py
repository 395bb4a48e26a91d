#!/usr/bin/env python3
"""The sparse layer alone in PyTorch, at the shapes of `bench moe`, with the same values and routing, as the same table.

    python3 benchmarks/peer_moe_layer.py [--shape T,D,N,E,K …] [--activation swiglu|relu2] [--repeats 20] [--json FILE]

Each shape is one run of peer_torch.py --layer: a compiled gather, two torch._grouped_mm with the activation between
them, and a sum over each token's rows; recorded as CUDA graphs. Its weight gradients are bf16 tensors, where `bench moe`
adds to fp32 buffers; the JSON's bwd_sums, "+ sums" of runs/bench.sh layer, adds them to such buffers too, as its training
does. T tokens, D width, N expert width, E experts, K experts a token.
"""
import argparse
import json
import pathlib
import subprocess
import sys

PEER = pathlib.Path(__file__).with_name("peer_torch.py")
SHAPES = ("40960,768,256,128,8", "40960,768,512,64,4", "40960,768,1024,32,2", "32768,4096,1024,64,4",
          "65536,768,1536,8,2")
PARTS = {"experts": "experts_only", "with_router": "with_router"}       # the peer's name for each, and ours


def arguments(description=__doc__.splitlines()[0]):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), metavar="T,D,N,E,K")
    parser.add_argument("--activation", choices=("swiglu", "relu2"), default="swiglu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json")
    return parser


def one_shape(text, activation, repeats):
    numbers = dict(zip(("tokens", "n_embd", "hidden", "experts", "topk"), map(int, text.split(","))))
    if len(numbers) != 5 or text.count(",") != 4:
        sys.exit(f"--shape {text} is not T,D,N,E,K")
    command = [sys.executable, PEER, "--layer", "--warmup", "3", "--steps", str(repeats)]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in numbers.items()]
    command += ["--swiglu"] if activation == "swiglu" else []
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    row = numbers | {"largest_over_mean_load": told["largest_over_mean_load"], "graph": told["graph"]}
    for name, part in PARTS.items():
        row[part] = {key: told[name][key] for key in ("fwd_ms", "bwd_ms", "bwd_sums_ms", "fwd_tflops", "bwd_tflops",
                                                      "bwd_sums_tflops")}
    return row, told["gpu"], told["torch"]


def main():
    options = arguments().parse_args()
    result = None
    for text in options.shape:
        row, gpu, torch = one_shape(text, options.activation, options.repeats)
        if result is None:
            result = {"program": f"torch {torch}", "device": gpu, "precision": "bf16", "activation": options.activation,
                      "shapes": []}
            print(f"the MoE layer alone, {options.activation}, bf16, torch {torch} on {gpu}: TFLOP/s, median of "
                  f"{options.repeats} runs")
            print(f"{'':32}   {'experts only':>19}   {'with router':>19}")
            print(f"{'T':>7} {'D':>5} {'N':>5} {'E':>4} {'K':>3} {'load':>6}" + f"   {'forward':>9} {'backward':>9}" * 2)
        result["shapes"].append(row)
        print(f"{row['tokens']:7} {row['n_embd']:5} {row['hidden']:5} {row['experts']:4} {row['topk']:3} "
              f"{row['largest_over_mean_load']:6.2f}" +
              "".join(f"   {row[part]['fwd_tflops']:9.1f} {row[part]['bwd_tflops']:9.1f}" for part in PARTS.values()),
              flush=True)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
