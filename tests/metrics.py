"""Reads the metrics of runs for the test scripts; the standard library is enough.

comparable FILE               the lines of a run without what depends on the clock and the machine; numbers as written
last_step FILE                the last step a training line tells of; 0: none yet
value FILE KIND STEP FIELD    one figure, as written (the last line of that kind and step)
curve A B BOUND [STEPS]       the largest difference of the two runs' losses over the steps; fails above BOUND
first_step A B                step 1 of both: equal loads, balance within rounding of the order of sums
write_golden FILE GOLDEN      keeps the losses of steps 1 to 10 and of the last
golden FILE GOLDEN            compares with them: 1e-5 over 10 steps, 1e-2 at the last
apart A B BOUND               two run folders: largest difference of losses, first step whose lines differ, tensors of the
                              last checkpoint that differ, largest difference of what routing keeps. Exit status 0: no
                              bit differs; 3: losses within BOUND; 1: beyond it, or other steps
finite FILE                   fails if a value of a fp32 .safetensors file is not finite
"""
import array
import glob
import json
import math
import os
import struct
import sys

CLOCK = {"tokens_per_s", "seconds_per_step", "forward_backward_ms", "optimizer_ms", "mfu", "memory_bytes", "elapsed_s",
         "eta_s", "seconds"}


def lines(path, **options):
    with open(path) as file:
        return [json.loads(line, **options) for line in file if line.endswith("\n")]


def of_kind(path, kind, **options):
    return [line for line in lines(path, **options) if line["kind"] == kind]


def comparable(path):
    for line in lines(path, parse_float=str):
        print(json.dumps({key: value for key, value in line.items() if key not in CLOCK}))


def last_step(path):
    print(max((line["step"] for line in of_kind(path, "train")), default=0))


def value(path, kind, step, field):
    found = [line for line in of_kind(path, kind, parse_float=str) if line["step"] == int(step)]
    if not found:
        sys.exit(f"{path} has no {kind} line of step {step}")
    print(found[-1][field])


def curve(path_a, path_b, bound, steps=None):
    a, b = ({line["step"]: line["loss"] for line in of_kind(path, "train")} for path in (path_a, path_b))
    if a.keys() != b.keys() or (steps and len(a) != int(steps)):
        sys.exit(f"{path_a} tells of steps {sorted(a)}, {path_b} of {sorted(b)}")
    worst = max(a, key=lambda step: abs(a[step] - b[step]))
    difference = abs(a[worst] - b[worst])
    print(f"losses of {len(a)} steps differ by {difference:.2g} at most, at step {worst}")
    if not difference <= float(bound):
        sys.exit(f"{path_b} leaves the curve of {path_a}: {b[worst]} where that has {a[worst]}, at step {worst}")


def first_step(path_a, path_b):
    counts = [[layer["counts"] for layer in of_kind(path, "routing")[0]["layers"]] for path in (path_a, path_b)]
    if counts[0] != counts[1]:
        sys.exit(f"loads of step 1 differ: {counts[0]} and {counts[1]}")
    balance = [of_kind(path, "train")[0]["balance_loss"] for path in (path_a, path_b)]
    if abs(balance[0] - balance[1]) > 1e-6 * abs(balance[0]):
        sys.exit(f"balance losses of step 1 differ: {balance[0]} and {balance[1]}")


def golden_losses(path):
    losses = {str(line["step"]): line["loss"] for line in of_kind(path, "train")}
    return {step: loss for step, loss in losses.items() if int(step) <= 10 or int(step) == len(losses)}


def write_golden(path, golden_path):
    with open(golden_path, "w") as file:
        file.write(json.dumps({"loss": golden_losses(path)}, indent=2) + "\n")


def golden(path, golden_path):
    losses = golden_losses(path)
    with open(golden_path) as file:
        expected = json.load(file)["loss"]
    if losses.keys() != expected.keys():
        sys.exit(f"{path} tells of steps {list(losses)}, {golden_path} of {list(expected)}")
    worst = {}
    for step, loss in expected.items():
        bound, difference = (1e-5 if int(step) <= 10 else 1e-2), abs(losses[step] - loss)
        worst[bound] = max(worst.get(bound, 0), difference)
        if not difference <= bound:
            sys.exit(f"step {step}: loss {losses[step]}, golden is {loss}, {difference:.2g} apart")
    print("; ".join(f"within {bound:g}: {difference:.2g}" for bound, difference in worst.items()))


def tensors(path):
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(size)), file.read()
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], data[slice(*entry["data_offsets"])]) for name, entry in header.items()}


def last_checkpoint(folder):
    return sorted(glob.glob(f"{folder}/checkpoints/step-*"))[-1]


def largest_difference(a, b):
    codes = {"F32": "f", "I64": "q", "I32": "i"}
    return max((abs(x - y) for (dtype, left), (_, right) in zip(a, b)
                for x, y in zip(array.array(codes[dtype], left), array.array(codes[dtype], right))), default=0)


def apart(folder_a, folder_b, bound):
    told = [[{key: value for key, value in line.items() if key not in CLOCK}
             for line in lines(f"{folder}/metrics.jsonl", parse_float=str) if line["kind"] in ("train", "routing")]
            for folder in (folder_a, folder_b)]
    if [line["step"] for line in told[0]] != [line["step"] for line in told[1]]:
        sys.exit(f"{folder_a} and {folder_b} tell of other steps")
    losses = [[float(line["loss"]) for line in run if line["kind"] == "train"] for run in told]
    # A comparison with NaN is false, so a difference that is NaN is the largest of all.
    differences = [abs(a - b) if abs(a - b) >= 0 else math.inf for a, b in zip(*losses)]
    first = next((a["step"] for a, b in zip(*told) if a != b), None)
    unequal, kept = 0, 0
    for file in ("weights", "optimizer", "routing"):
        paths = [f"{last_checkpoint(folder)}/{file}.safetensors" for folder in (folder_a, folder_b)]
        if not any(map(os.path.exists, paths)):
            continue  # a run may keep nothing of routing
        a, b = map(tensors, paths)
        if a.keys() != b.keys():
            sys.exit(f"{paths[0]} and {paths[1]} hold other tensors")
        differing = [name for name in a if a[name] != b[name]]
        unequal += len(differing)
        if file == "routing":
            kept = largest_difference([a[name] for name in differing], [b[name] for name in differing])
    print(f"{max(differences):.2g} {first or '-'} {unequal} {kept:.2g}")
    if first or unequal:
        sys.exit(3 if max(differences) <= float(bound) else 1)


def finite(path):
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header, values = json.loads(file.read(size)), array.array("f", file.read())
    if sys.byteorder == "big":
        values.byteswap()
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (offset // 4 for offset in entry["data_offsets"])
        if entry["dtype"] != "F32" or not all(map(math.isfinite, values[begin:end])):
            sys.exit(f"{path}: {name} is not fp32 and finite")


if __name__ == "__main__":
    commands = (comparable, last_step, value, curve, first_step, write_golden, golden, apart, finite)
    {command.__name__: command for command in commands}[sys.argv[1]](*sys.argv[2:])
