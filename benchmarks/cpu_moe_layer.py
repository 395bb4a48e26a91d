#!/usr/bin/env python3
"""The sparse layer on this CPU beside the same layer in eager PyTorch: forward and backward, tokens a second.

    python3 benchmarks/cpu_moe_layer.py build/bin/bench [--shape T,D,E,K …] [--activation swiglu|relu2] [--repeats 10]
                                        [--alternations 5] [--json FILE]

Both have a router (softmax, normalised top-k), the Switch loss, and experts that are as wide together as a dense MLP of
4 D; the peer loops over experts with index_select, the products, and index_add. They run one after the other,
`alternations` times, on as many threads; each time counts the median of its repeats, and the figure is the median over the
alternations. T tokens, D width, E experts, K experts a token. Needs the Python that has torch.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

SHAPES = ("4096,256,8,2", "4096,256,64,8", "4096,768,8,2", "4096,768,64,8")


class Layer(torch.nn.Module):
    """Every matrix as [out, in], each expert's its own: a slice of a stack would have a gradient of the stack's size."""

    def __init__(self, width, hidden, experts, top_k, activation):
        super().__init__()
        self.experts, self.top_k, self.gated = experts, top_k, activation == "swiglu"
        draw = lambda *shape: torch.nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)
        self.router = draw(experts, width)
        self.up = torch.nn.ParameterList(draw((2 if self.gated else 1) * hidden, width) for _ in range(experts))
        self.down = torch.nn.ParameterList(draw(width, hidden) for _ in range(experts))

    def expert(self, e, x):
        pre = x @ self.up[e].T
        if self.gated:
            gate, value = pre.chunk(2, dim=-1)
            active = F.silu(gate) * value
        else:
            active = F.relu(pre).square()
        return active @ self.down[e].T

    def forward(self, x):
        """x [T, D] -> [T, D], Switch loss E sum_i f_i P_i."""
        probability = (x @ self.router.T).softmax(-1)
        weight, choice = probability.topk(self.top_k)
        weight = weight / weight.sum(-1, keepdim=True)
        count = torch.bincount(choice.flatten(), minlength=self.experts)
        loss = self.experts * (count / len(x) * probability.mean(0)).sum()

        order = choice.flatten().argsort(stable=True)          # assignments in expert order
        token, share = order // self.top_k, weight.flatten()[order]
        out, begin = torch.zeros_like(x), 0
        for e, rows in enumerate(count.tolist()):
            if rows == 0:
                continue
            here = token[begin:begin + rows]
            y = self.expert(e, x.index_select(0, here)) * share[begin:begin + rows, None]
            out.index_add_(0, here, y)
            begin += rows
        return out, loss


def eager_ms(shape, activation, repeats):
    tokens, width, experts, top_k = shape
    torch.manual_seed(0)
    layer = Layer(width, 4 * width // top_k, experts, top_k, activation)
    x, dy = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)

    def once():
        began = time.perf_counter()
        out, loss = layer(x)
        torch.autograd.backward((out, loss), (dy, torch.tensor(0.01)))
        return 1e3 * (time.perf_counter() - began)

    for _ in range(3):
        once()       # gradients then exist: both sides add to them
    return statistics.median(once() for _ in range(repeats))


def our_ms(program, shape, activation, repeats):
    tokens, width, experts, top_k = map(str, shape)
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run([program, "moe-vs-mlp", "--device", "cpu", "--backend", "cpu", "--tokens", tokens, "--width", width,
                        "--experts", experts, "--top-k", top_k, "--activation", activation, "--repeats", str(repeats),
                        "--json", file.name], check=True, stdout=subprocess.DEVNULL)
        result = json.load(open(file.name))
    run = next(run for run in result["shapes"][0]["runs"] if run["backend"] == "cpu")
    if max(run["output_error"], run["gradient_error"]) > 1e-4:
        sys.exit(f"the layer is not what its reference computes: {run}")
    return run["fwd_bwd_ms"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), metavar="T,D,E,K")
    parser.add_argument("--activation", choices=("swiglu", "relu2"), default="swiglu")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "activation": options.activation, "shapes": []}
    print(f"the MoE layer, {options.activation}, fp32, {result['threads']} threads: forward and backward, tokens/s, median of "
          f"{options.alternations} alternations")
    print(f"{'T':>6} {'D':>5} {'E':>4} {'K':>3} {'ours':>10} {'torch':>10} {'ratio':>7}")
    for text in options.shape:
        shape = tuple(map(int, text.split(",")))
        if len(shape) != 4:
            sys.exit(f"--shape {text} is not T,D,E,K")
        ours, eager = [], []
        for _ in range(options.alternations):
            ours.append(our_ms(options.program, shape, options.activation, options.repeats))
            eager.append(eager_ms(shape, options.activation, options.repeats))
        rates = [1e3 * shape[0] / statistics.median(times) for times in (ours, eager)]
        print(f"{shape[0]:6} {shape[1]:5} {shape[2]:4} {shape[3]:3} {rates[0]:10.0f} {rates[1]:10.0f} "
              f"{rates[0] / rates[1]:7.2f}", flush=True)
        result["shapes"].append(dict(zip(("tokens", "n_embd", "experts", "topk"), shape)) |
                                {"tokens_per_s": rates[0], "torch_tokens_per_s": rates[1], "ratio": rates[0] / rates[1],
                                 "ms": ours, "torch_ms": eager})
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
