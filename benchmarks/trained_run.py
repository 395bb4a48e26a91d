"""A run's last checkpoint as the start of both programs in side_by_side.py, and what each finds there before it trains.

Ours starts from it by train.init_from, the peer by --weights; both read the text that ours takes from its first
micro-batch on. So the routers are those of a trained model on real text, whose experts are not equally loaded.
Optimizers start anew, and at their usual rates their first steps would throw the model far from the checkpoint (Adam's
first is a sign): rates are a thousandth of them, which changes nothing of the work.
"""
import json
import pathlib
import statistics
import sys

KEPT_OF_TRAIN = ("batch_tokens", "micro_batch", "seed", "recompute")
LARGEST_DIFFERENCE = 0.02       # of the losses of the first step: bf16 in two programs differs by a tenth of it
RATE = 1e-3                     # of the usual learning rates, of both


def slow_rates(schema):
    """Options of ours that give every learning rate as RATE times its default, from the first step on."""
    optim = json.loads(schema.read_text())["properties"]["optim"]["properties"]
    rates = {f"--optim.{group}.{key}": RATE * field["default"] for group in ("muon", "adamw")
             for key, field in optim[group]["properties"].items() if key == "lr" or key.endswith("_lr")}
    return [word for option in ({"--optim.schedule.warmup_steps": 0} | rates).items() for word in option]


def last_checkpoint(path):
    """A step's folder as it is, of a run's folder the step that was saved last."""
    folder = pathlib.Path(path).resolve()
    steps = [folder] if folder.name.startswith("step-") else sorted(folder.glob("checkpoints/step-*"))
    whole = [step for step in steps if (step / "MANIFEST.json").is_file()]
    if not whole:
        sys.exit(f"--checkpoint {path}: there is no checkpoint; name a run's folder, or a step's below it")
    return whole[-1]


def config_of(checkpoint, folder):
    """(file for ours, what was given, every value) of the run, without what only that run was told."""
    given, resolved = (json.loads((checkpoint / name).read_text()) for name in ("given_config.json", "config.json"))
    given["train"] = {key: value for key, value in given.get("train", {}).items() if key in KEPT_OF_TRAIN}
    given.pop("log", None)
    file = pathlib.Path(folder, f"{given.get('name') or 'run'}.json")
    file.write_text(json.dumps(given))
    return file, given, resolved


def loads(layers):
    """layers: a routing line's. Of the fullest expert's load over the mean, the mean over layers and the worst layer's."""
    each = [max(layer["counts"]) * len(layer["counts"]) / sum(layer["counts"]) for layer in layers] or [1.0]
    return {"load": statistics.mean(each), "load_worst": max(each)}


def found(rows):
    """rows: lines of metrics.jsonl. What they tell of the last step."""
    last = lambda kind: next((row for row in reversed(rows) if row["kind"] == kind), {"layers": []})
    return {"loss": last("train")["loss"], **loads(last("routing")["layers"])}


def print_found(title, ours, peer):
    for who, at in (("ours", ours), ("peer", peer)):
        print(f"{title:<34}{who}: loss {at['loss']:.4f}, fullest expert {at['load']:.3f} of the mean in the mean of "
              f"layers, {at['load_worst']:.3f} in the worst", flush=True)
        title = ""


def complaint(ours, peer):
    """What is wrong where the two do not compute the same from the same weights and text; else empty."""
    if abs(ours["loss"] / peer["loss"] - 1) <= LARGEST_DIFFERENCE:
        return ""
    return (f"the losses of the first step, {ours['loss']:.4f} and {peer['loss']:.4f}, differ by more than "
            f"{LARGEST_DIFFERENCE:.0%}: the peer is not this model, and the ratios say nothing")
