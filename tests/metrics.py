"""Reads the metrics of runs for the test scripts; the standard library is enough.

comparable FILE               the lines of a run without what depends on the clock and the machine; numbers as written
last_step FILE                the last step a training line tells of; 0: none yet
value FILE KIND STEP FIELD    one figure, as written (the last line of that kind and step)
curve A B BOUND [STEPS]       the largest difference of the two runs' losses over the steps; fails above BOUND
first_step A B                step 1 of both: equal loads, balance within rounding of the order of sums
write_golden FILE GOLDEN      keeps the losses of steps 1 to 10 and of the last
golden FILE GOLDEN            compares with them: 1e-5 over 10 steps, 1e-2 at the last
finite FILE                   fails if a value of a fp32 .safetensors file is not finite
"""
import array
import json
import math
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
    commands = (comparable, last_step, value, curve, first_step, write_golden, golden, finite)
    {command.__name__: command for command in commands}[sys.argv[1]](*sys.argv[2:])
