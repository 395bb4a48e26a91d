#!/usr/bin/env python3
"""The program on this CPU beside the same model in eager PyTorch (the parity model, autograd, a loop over experts).

    python3 benchmarks/cpu_vs_eager.py build/bin/train [--config quickstart.json] [--steps 6]

Both train whole steps, optimizer included, with the same batch and as many threads; they alternate, twice each. Tokens a
second are those of the median step after the first. Needs the Python that has torch.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "parity"))
import config as options            # noqa: E402
import model                        # noqa: E402
import optimizers                   # noqa: E402


def ours(program, name, steps, folder):
    command = [program, "--config", name, "--device", "cpu", "--train.out", f"{folder}/run", "--data.cache", f"{folder}/cache",
               "--train.steps", str(steps), "--train.log_every", "1", "--train.eval_every", "0", "--train.eval_tokens", "4096",
               "--train.sample_tokens", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"SWITCHYARD_ROOT": str(ROOT)})
    with open(f"{folder}/run/metrics.jsonl") as lines:
        rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    resolved = next(pathlib.Path(folder, "run", "checkpoints").glob("step-*/config.json"))
    return statistics.median(row["tokens_per_s"] for row in rows[1:]), options.load(resolved)


def eager(config, steps):
    torch.manual_seed(0)
    m, sequences = config.model, config.train.micro_batch
    parameters = {name: torch.randn(shape) * 0.02 for name, shape in model.parameter_shapes(config).items()}
    optimizer = optimizers.Optimizer(config, parameters)
    micro_batches = config.train.batch_tokens // (sequences * m.seq_len)
    text = torch.randint(m.vocab_size, (micro_batches, sequences, m.seq_len + 1))
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        grads, _ = model.gradients(config, parameters, [(t[:, :-1], t[:, 1:]) for t in text])
        optimizer.apply(parameters, grads)
        seconds.append(time.perf_counter() - began)
    return config.train.batch_tokens / statistics.median(seconds[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--config", default="quickstart.json")
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    figures = {"ours": [], "eager": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            rate, config = ours(arguments.program, arguments.config, arguments.steps, folder)
            figures["ours"].append(rate)
            figures["eager"].append(eager(config, arguments.steps))
    best = {name: max(rates) for name, rates in figures.items()}
    print(f"{arguments.config} on {torch.get_num_threads()} threads: ours {best['ours']:.0f} tokens/s, eager PyTorch "
          f"{best['eager']:.0f} tokens/s, ratio {best['ours'] / best['eager']:.2f}")


main()
