#!/usr/bin/env python3
"""Draws the losses of runs: runs/plot.py OUT.svg NAME=metrics.jsonl …    (needs matplotlib)"""
import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def rows(path, kind):
    with open(path) as lines:
        return [row for row in map(json.loads, lines) if row["kind"] == kind]


out, *runs = sys.argv[1:]
figure, axes = plt.subplots(figsize=(7.5, 3.8))
for run in runs:
    name, path = run.split("=", 1)
    train, held_out = rows(path, "train"), rows(path, "eval")
    line, = axes.plot([r["step"] for r in train], [r["loss"] for r in train], lw=1.4, label=f"{name}, training")
    axes.plot([r["step"] for r in held_out], [r["loss"] for r in held_out], "o--", ms=3.5, lw=0.9, color=line.get_color(),
              alpha=0.75, label=f"{name}, held out")
axes.set(xlabel="step", ylabel="cross entropy, nats a token", ylim=(0, None))
axes.grid(alpha=0.3)
axes.legend(frameon=False, fontsize=9)
figure.tight_layout()
figure.savefig(out, metadata={"Date": None})
