"""Compares the program with the Python model, case by case.

    python compare.py --dump BUILD/bin/parity_dump [--out FOLDER] [--case SUBSTRING] [--gaps] [--jobs 2]

For each case parity_dump builds the model, makes every weight non-zero, takes losses, gradients and some steps, and writes
all of it down; here the same numbers are computed from the written weights and tokens, in fp64, and once more in fp32 to
show what fp32 itself costs. Prints a table and 'N passed, N failed'; exit status 1 when a case failed.

Errors are relative: |a - b| / |b| of a tensor's norms, and its largest deviation by its largest element.
The optimizer is fed the program's own gradient, so that a gradient's rounding is not counted twice (AdamW's first step
is a sign). Its update is compared, w_after - w_before, less the rounding of w, and without the few elements of Muon's
matrices whose orthogonalised step is so near 0 that rounding decides whether cautious weight decay applies.
"""

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

import balance
import cases
import config as options
import model
import optimizers
import routing

BOUNDS = {"logits": 1e-5, "loss": 1e-6, "aux": 1e-5, "gradients": 1e-5, "step gradients": 1e-5, "update": 1e-4, "curve": 3e-5}


class Mismatch(Exception):
    """The two sides cannot be compared at all: a name or a shape is different."""


DERIVED = ("model.n_head", "model.n_kv_head", "model.ffn_hidden", "moe.n_experts", "moe.d_expert", "moe.d_shared", "router.top_k")

# ---------------------------------------------------------------- errors
def relative_error(a, b):
    """The larger of the errors by norm and by largest element. A zero tensor must be matched exactly."""
    a, b = a.double(), b.double()
    if a.shape != b.shape:
        raise Mismatch(f"shape {tuple(a.shape)} instead of {tuple(b.shape)}")
    if b.abs().max() == 0:
        return 0.0 if a.abs().max() == 0 else float("inf")
    error = max((a - b).norm() / b.norm(), (a - b).abs().max() / b.abs().max()).item()
    return error if error == error else float("inf")


def worst(a, b):
    """(error, name) over two dictionaries of tensors with the same names."""
    if set(a) != set(b):
        raise Mismatch(f"only in the program: {sorted(set(a) - set(b))}, only in Python: {sorted(set(b) - set(a))}")
    try:
        return max((relative_error(a[name], b[name]), name) for name in b)
    except Mismatch as mismatch:
        bad = [name for name in b if a[name].shape != b[name].shape]
        raise Mismatch(f"{bad[0]}: {mismatch}") from None


# ---------------------------------------------------------------- the two sides
def run_program(dump, folder, name):
    keys, flags = cases.options_of(name)
    given = {}
    for key, value in keys.items():
        *groups, last = key.split(".")
        place = given
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.json").write_text(json.dumps(given, indent=1))
    command = [str(dump), "--config", str(folder / "given.json"), "--out", str(folder), *flags]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}      # waiting threads would take the other cases' cores
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=one_thread)
    if result.returncode != 0:
        raise Mismatch(f"parity_dump ended with {result.returncode}: {(result.stderr or result.stdout).strip()[-400:]}")


def check_derived(name, config):
    """Sizes that the program took for a case, against those the keys stand for."""
    keys, _ = cases.options_of(name)
    want = options.build({key: value for key, value in keys.items() if options.has(options.build(), key)})
    for key in DERIVED:
        group, leaf = key.split(".")
        got, should = (getattr(getattr(side, group), leaf) for side in (config, want))
        if got != should:
            raise Mismatch(f"{key} = {got} instead of {should}")


class Dump:
    """What the program wrote."""

    def __init__(self, folder, at_step=0):
        self.at_step = at_step      # at which the first micro-batch was taken by itself
        read = lambda name: load_file(folder / f"{name}.safetensors")
        self.config = options.load(folder / "config.json")
        self.weights, self.weights_after = read("weights"), read("weights_after")
        self.forward, self.gradients, self.step_gradients = read("forward"), read("gradients"), read("gradients_step")
        tokens = read("tokens")
        windows = torch.arange(tokens["inputs"].shape[:2].numel()).view(tokens["inputs"].shape[:2])
        self.micro_batches = list(zip(tokens["inputs"], tokens["targets"], windows.tolist()))
        self.resets = {int(path.stem.removeprefix("reset_")): load_file(path) for path in folder.glob("reset_*.safetensors")}
        self.curve = torch.tensor(json.loads((folder / "steps.json").read_text())["loss"], dtype=torch.float64)
        sequences = self.config.train.micro_batch * self.config.model.seq_len
        self.accumulation = self.config.train.batch_tokens // sequences

    def of_step(self, step):
        """The micro-batches of a step: the written ones, over and over."""
        first = step * self.accumulation
        return [self.micro_batches[(first + i) % len(self.micro_batches)] for i in range(self.accumulation)]


def recompute(dump, dtype):
    """Everything the program computed, from its weights and tokens."""
    weights = {name: w.to(dtype) for name, w in dump.weights.items()}
    shapes = model.parameter_shapes(dump.config)
    if {name: tuple(w.shape) for name, w in weights.items()} != shapes:
        bad = sorted(set(shapes) ^ set(weights)) or [n for n in shapes if tuple(weights[n].shape) != shapes[n]]
        raise Mismatch(f"parameters differ by name or shape: {bad}")
    with torch.no_grad():
        loss, auxiliary, logits = model.losses(dump.config, weights, *dump.micro_batches[0], state=balance.State(dump.at_step))
    gradients, _ = model.gradients(dump.config, weights, dump.micro_batches[:1], balance.State(dump.at_step))
    step_gradients, _ = model.gradients(dump.config, weights, dump.of_step(0))
    return {"logits": {"logits": logits}, "loss": {"loss": loss}, "aux": {"aux": auxiliary}, "gradients": gradients,
            "step gradients": step_gradients, "update": first_update(dump, dump.config, dtype), "curve": {"curve": curve(dump, weights)}}


def first_update(dump, config, dtype):
    before = {name: w.to(dtype) for name, w in dump.weights.items()}
    after = {name: w.clone() for name, w in before.items()}
    gradients = {name: g.to(dtype) for name, g in dump.step_gradients.items()}
    optimizers.Optimizer(config, after).apply(after, gradients)
    return {name: after[name] - before[name] for name in before}


def comparable_update(dump, exact):
    """The program's update where it can be told apart from the exact one, which stands in everywhere else."""
    undecayed = copy.deepcopy(dump.config)
    undecayed.optim.muon.weight_decay = 0.0
    steps = first_update(dump, undecayed, torch.float64)
    out = {}
    for name, after in dump.weights_after.items():
        before, want = dump.weights[name].double(), exact[name]
        error = after.double() - before - want
        rounding = 2.0**-24 * torch.maximum(after.abs(), before.abs())
        error = error.sign() * (error.abs() - rounding).clamp(min=0)
        if optimizers.adamw_group(dump.config, name) is None:
            error[steps[name].abs() < 1e-5 * steps[name].abs().max()] = 0
        out[name] = want + error
    return out


def curve(dump, weights):
    weights = {name: w.clone() for name, w in weights.items()}
    optimizer, state, losses = optimizers.Optimizer(dump.config, weights), balance.State(), []
    for step in range(len(dump.curve)):
        if balance.resets(dump.config.router, step):
            if step not in dump.resets:
                raise Mismatch(f"the routers are not reset at step {step}")
            state.bias = {}
            for name, fresh in dump.resets[step].items():
                optimizer.forget(weights, name)
                weights[name].copy_(fresh)
        gradients, loss = model.gradients(dump.config, weights, dump.of_step(step), state)
        optimizer.apply(weights, gradients)
        state.after_step(dump.config)
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64)


def written(dump, exact):
    scalar = lambda name: {name: dump.forward[name].reshape(())}
    update = comparable_update(dump, exact["update"])
    return {"logits": {"logits": dump.forward["logits"]}, "loss": scalar("loss"), "aux": scalar("aux"),
            "gradients": dump.gradients, "step gradients": dump.step_gradients, "update": update,
            "curve": {"curve": dump.curve}}


# ---------------------------------------------------------------- the report
def compare(dump):
    """For each quantity (error of the program, name of the worst tensor, error of fp32 in Python)."""
    exact, single = recompute(dump, torch.float64), recompute(dump, torch.float32)
    program = written(dump, exact)
    return {what: (*worst(program[what], exact[what]), worst(single[what], exact[what])[0]) for what in BOUNDS}


def smallest_gap(dump):
    with routing.watched_gaps() as gaps:
        curve(dump, {name: w.double() for name, w in dump.weights.items()})
    return min(gaps, default=float("inf"))


def report(name, errors, dump, show_gap):
    """A case's line with what failed below it, and whether nothing did."""
    failures = [what for what, (error, _, _) in errors.items() if error > BOUNDS[what]]
    columns = " ".join(f"{errors[what][0]:8.1e}" for what in BOUNDS)
    floor = max(errors["gradients"][2], errors["logits"][2])
    lines = [f"{name:34s} {columns}  {floor:8.1e} {errors['update'][2]:8.1e} {errors['curve'][2]:8.1e}  "
             f"{'FAILED' if failures else 'passed'}"]
    for what in failures:
        error, tensor, single = errors[what]
        lines.append(f"    {what}: {tensor} differs by {error:.1e}, bound {BOUNDS[what]:.0e}; fp32 in Python {single:.1e}")
    if dump.config.moe.use_moe and (show_gap or "curve" in failures):
        lines.append(f"    smallest gap between what was chosen and what was not, over all steps: {smallest_gap(dump):.1e}")
    return "\n".join(lines), not failures


def run_case(arguments, folder, name):
    torch.set_num_threads(1)
    folder = (arguments.out or folder) / name.replace(" ", "_").replace(",", "").replace(":", "")
    try:
        run_program(arguments.dump, folder, name)
        dump = Dump(folder, cases.CASES[name].get("at_step", 0))
        check_derived(name, dump.config)
        return report(name, compare(dump), dump, arguments.gaps)
    except Mismatch as mismatch:
        return f"{name:34s} FAILED: {mismatch}", False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", required=True, type=Path, help="the program parity_dump")
    parser.add_argument("--out", type=Path, help="folder that keeps the dumps; default: a temporary one")
    parser.add_argument("--case", default="", help="only cases in whose name this regular expression is found")
    parser.add_argument("--gaps", action="store_true", help="print how near the curve's choices of experts come to a tie")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    arguments = parser.parse_args()
    print(f"{'':34s} {'error of the program':^62s}  {'of fp32 in Python':^26s}")
    print(f"{'case':34s} {'logits':>8s} {'loss':>8s} {'aux':>8s} {'grad':>8s} {'steps':>8s} {'update':>8s} {'curve':>8s}"
          f"  {'grad':>8s} {'update':>8s} {'curve':>8s}")
    passed = failed = 0
    names = [name for name in cases.CASES if re.search(arguments.case, name)]
    with tempfile.TemporaryDirectory() as temporary, ProcessPoolExecutor(arguments.jobs) as pool:
        for text, good in pool.map(partial(run_case, arguments, Path(temporary)), names):
            print(text, flush=True)
            passed, failed = passed + good, failed + (not good)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
