#!/usr/bin/env python3
"""This program and the PyTorch peer on one GPU, alternately, as one table of medians. Run it as runs/bench.sh.

    runs/bench.sh [CONFIG…]     whole training steps; default: moe_8x2. CONFIG: dense_d12, moe_8x2, moe_32x4, moe_64x8,
                                d20_8x2, or a file that differs from them in what the peer has too
    runs/bench.sh layer         the sparse layer alone, at the shapes of `bench moe`
    runs/bench.sh --checkpoint RUN [CONFIG]
                                whole steps of both from the last checkpoint of a run of ours, on the same real text:
                                the load of a trained router's experts. CONFIG: default: the run's own
    runs/bench.sh --imbalance 0.5 [CONFIG…]
                                whole steps of ours alone: experts' shares of tokens as a softmax of normal logits of
                                this standard deviation makes them, against equal ones

Ours trains on real text (the default corpus), the peer on random tokens, both whole steps of train.batch_tokens at the
same micro-batch. tokens/s, MFU and milliseconds are steady-state medians. Memory is the peak that ours reserved from the
GPU and the peak that the peer's tensors took, which favours the peer. Start-up is from launching the process to the end
of its first training step, text prepared; the peer's first round compiles, later ones find its cache. With --checkpoint
the peer reads the text of ours and both start from the same weights, at a thousandth of their learning rates, so that
all steps route as the checkpoint does; before, each tells loss and load of the first step, which must agree, and after,
of its last.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

import peer_moe_layer
import trained_run

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEER = pathlib.Path(__file__).with_name("peer_torch.py")
MICRO_BATCH_TOKENS = {768: 65536, 1280: 32768}      # by width: what fits with the peer's memory
PEER_HAS = {"model": {"n_layer", "n_embd", "head_dim", "n_kv_head", "seq_len", "vocab_size", "ffn_hidden"},
            "moe": {"use_moe", "n_experts", "d_expert", "expert_hidden_mult"}, "router": {"top_k"},
            "train": {"target_param_data_ratio", "batch_tokens", "micro_batch", "steps"}}
FROM_WEIGHTS = {"model": {"value_gate_channels"}, "router": {"balance_coef"}, "precision": {"mode"},      # with --checkpoint
                "optim": {"muon", "adamw", "schedule", "matrix_lr", "router_optimizer"}}    # rates cost no time
OURS_ALONE = {"data", "parallel"}       # groups of no meaning for the peer
OURS_ENVIRONMENT = os.environ | {"SWITCHYARD_ROOT": str(ROOT)}
EQUAL_SHARES = 1e-6     # as a spread: not 0, so that equal and unequal shares are chosen by the same kernels
PEER_WARM_UP = 3
LOG_EVERY = 4       # steps; the first interval holds recording and is left out


def read_config(name):
    file = next((f for f in (pathlib.Path(name), ROOT / "configs" / name, ROOT / "configs" / f"{name}.json") if f.is_file()),
                None)
    if file is None:
        sys.exit(f"there is no config {name}; configs/ has " +
                 ", ".join(sorted(f.stem for f in (ROOT / "configs").glob("*.json") if f.stem != "schema")))
    return file.resolve(), json.loads(file.read_text())


def schema_groups():
    return json.loads((ROOT / "configs" / "schema.json").read_text())["properties"]


def with_defaults(config):
    """The config with the keys that the peer has and it leaves out."""
    schema = schema_groups()
    usual = lambda group, keys: {key: schema[group]["properties"][key]["default"] for key in keys
                                 if "default" in schema[group]["properties"][key]}
    return config | {group: usual(group, keys) | config.get(group, {}) for group, keys in PEER_HAS.items()}


def check_peer_has(file, config, more={}):
    """Ends the program where the config sets what the peer has not. more: keys by group that it has besides."""
    schema = schema_groups()
    for group, keys in config.items():
        for key in keys if isinstance(keys, dict) and group not in OURS_ALONE else ():
            usual = schema.get(group, {}).get("properties", {}).get(key, {}).get("default")
            if key not in PEER_HAS.get(group, set()) | more.get(group, set()) and keys[key] != usual:
                sys.exit(f"{file}: the PyTorch peer has no counterpart of {group}.{key}")


def peer_options(config, micro_batch):
    """config: with_defaults."""
    model, moe = config["model"], config["moe"]
    width = model["n_embd"]
    options = {"n-layer": model["n_layer"], "n-embd": width, "head-dim": model["head_dim"], "seq-len": model["seq_len"],
               "vocab": model["vocab_size"], "micro-batch": micro_batch, "batch-tokens": config["train"]["batch_tokens"]}
    if model.get("n_kv_head"):
        options["n-kv-head"] = model["n_kv_head"]
    if "precision" in config:
        options["precision"] = config["precision"]["mode"]
    if "balance_coef" in config.get("router", {}):
        options["balance"] = config["router"]["balance_coef"]
    if moe["use_moe"]:
        options |= {"model": "moe", "experts": moe["n_experts"], "topk": config["router"]["top_k"],
                    "hidden": moe.get("d_expert") or moe["expert_hidden_mult"] * width}
    else:
        options["model"] = "dense"
        if (model.get("ffn_hidden") or 4 * width) != 4 * width:
            sys.exit(f"model.ffn_hidden = {model['ffn_hidden']}: the PyTorch peer's layers have 4 n_embd = {4 * width}")
    return [f"--{name}={value}" for name, value in options.items()]


def lines_of(command, **options):
    """(seconds since launch, line) of what the command prints; ends the program with its last words if it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        began = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=errors, text=True, **options)
        told = [(time.monotonic() - began, line.rstrip("\n")) for line in process.stdout]
        if process.wait() != 0:
            errors.seek(0)
            last = [line for _, line in told][-15:] + errors.read().splitlines()[-15:]
            sys.exit(f"{shlex.join(map(str, command))} ended with code {process.returncode}:\n" + "\n".join(last))
        return told


def train_ours(train, file, micro_batch, options, folder, *more):
    """(seconds since launch, line) of what it prints, and its metrics."""
    out = pathlib.Path(folder, "ours")
    told = lines_of([train, "--config", file, "--train.out", out, "--train.micro_batch", micro_batch, "--train.eval_every", 0,
                     "--train.eval_tokens", 65536, "--train.sample_tokens", 0, *more, *shlex.split(options.ours)],
                    cwd=ROOT, env=OURS_ENVIRONMENT)
    with open(out / "metrics.jsonl") as lines:
        rows = list(map(json.loads, lines))
    subprocess.run(["rm", "-rf", out], check=True)      # its checkpoint is gigabytes
    return told, rows


def run_ours(train, file, config, micro_batch, options, folder, *more):
    told, rows = train_ours(train, file, micro_batch, options, folder, "--train.steps", options.steps, "--train.log_every",
                            LOG_EVERY, *more)
    timed = [row for row in rows if row["kind"] == "train" and row["step"] > LOG_EVERY]
    if any(row["skipped_nonfinite"] for row in timed):
        sys.exit(f"{file.stem}: a step was not finite")
    middle = lambda key: statistics.median(row[key] for row in timed)
    micro_batches = config["train"]["batch_tokens"] // (micro_batch * config["model"]["seq_len"])
    return {"tokens_per_s": middle("tokens_per_s"), "mfu": middle("mfu"),
            "fwd_bwd_ms": middle("forward_backward_ms") / micro_batches, "optimizer_ms": middle("optimizer_ms"),
            "memory_gib": max(row["memory_bytes"] for row in timed) / 2 ** 30,
            "start_s": next(at for at, line in told if line.startswith("first step done")), **trained_run.found(rows)}


def inductor_cache(folder):
    """Where the peer keeps what it compiled: the user's own folder, so that a later call finds it, else this call's."""
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR", f"{folder}/inductor")


def run_peer(config, micro_batch, options, cache, *more):
    command = [sys.executable, PEER, *peer_options(config, micro_batch), "--warmup", PEER_WARM_UP,
               "--steps", options.peer_steps, *more, *shlex.split(options.peer)]
    at, line = lines_of(command, env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache})[-1]
    told = json.loads(line)
    later_steps = PEER_WARM_UP + options.peer_steps - 1
    looks = {when: told[when] for when in ("first", "last") if when in told}
    return {"tokens_per_s": told["tokens_per_s"], "mfu": told["mfu"], "fwd_bwd_ms": told["fwd_bwd_ms_per_micro"],
            "optimizer_ms": told["optimizer_ms"], "memory_gib": told["peak_memory_gib"],
            "start_s": at - later_steps * told["step_ms"] / 1e3 - sum(look["seconds"] for look in looks.values()),
            "loss": told["loss_last"], "gpu": told["gpu"], "torch": told["torch"], **looks}


COLUMNS = (("tokens_per_s", "tokens/s", "{:,.0f}", 1), ("mfu", "MFU", "{:.1f}%", 100),
           ("fwd_bwd_ms", "ms fwd+bwd", "{:.2f}", 1), ("optimizer_ms", "ms optimizer", "{:.2f}", 1),
           ("memory_gib", "GiB peak", "{:.1f}", 1), ("start_s", "s start-up", "{:.1f}", 1))


def print_row(*cells):
    print(f"{cells[0]:<12} {cells[1]:<7}" + "".join(f"{cell:>14}" for cell in cells[2:]), flush=True)


def print_figures(name, who, figures, *more):
    print_row(name, who, *(text.format(figures[key] * scale) for key, _, text, scale in COLUMNS), *more)


def medians(runs):
    return {key: statistics.median(run[key] for run in runs) for key, *_ in COLUMNS}


def print_report(runs, middle, configs, compiled_before):
    """runs: {config: {"ours": [figures a round], "peer": […]}}, middle the medians of the rounds."""
    print("\nmedians; ms fwd+bwd is of one micro-batch")
    print_row("config", "", *(title for _, title, *_ in COLUMNS))
    for name, both in middle.items():
        ours, peer = both["ours"], both["peer"]
        print_figures(name, "ours", ours)
        print_figures("", "peer", peer)
        print_row("", "ratio", *(f"{ours[key] / peer[key]:.3f}" if peer[key] else "–" for key, *_ in COLUMNS))
    for name, both in () if compiled_before else runs.items():
        print(f"{name}: start-up in round 1, in which the peer compiles: ours {both['ours'][0]['start_s']:.1f} s, "
              f"peer {both['peer'][0]['start_s']:.1f} s")
    size = lambda name: [configs[name]["model"][key] for key in ("n_layer", "n_embd", "seq_len")]
    rate = lambda name, who: middle[name][who]["tokens_per_s"]
    for name in runs:
        for other in runs:
            if name != other and size(name) == size(other):
                print(f"tokens/s of our {name}: {rate(name, 'ours') / rate(other, 'peer'):.3f} of the peer's {other}, "
                      f"{rate(name, 'ours') / rate(other, 'ours'):.3f} of our own")


def micro_batch_of(config, options):
    return options.micro_batch or MICRO_BATCH_TOKENS.get(config["model"]["n_embd"], 32768) // config["model"]["seq_len"]


def prepare_text(file, config, options, folder):
    """Where it is not yet, so that no start-up counts it."""
    train_ours(options.bin / "train", file, 1, options, folder, "--model.n_layer", 1, "--train.steps", 1,
               "--train.batch_tokens", config["model"]["seq_len"], "--train.eval_tokens", 1)


def compile_peers(configs, options, folder):
    """So many at a time as --compile-together says; the rounds then find what was compiled."""
    brief = argparse.Namespace(**vars(options) | {"peer_steps": 1})
    with concurrent.futures.ThreadPoolExecutor(options.compile_together) as pool:
        list(pool.map(lambda config: run_peer(config, micro_batch_of(config, options), brief, inductor_cache(folder)),
                      configs.values()))


def compare_training(options):
    read = {file.stem: (file, config) for file, config in map(read_config, options.config or ["moe_8x2"])}
    for file, config in read.values():
        check_peer_has(file, config)
    read = {name: (file, with_defaults(config)) for name, (file, config) in read.items()}
    configs = {name: config for name, (_, config) in read.items()}
    runs = {name: {"ours": [], "peer": []} for name in read}
    train = options.bin / "train"
    with tempfile.TemporaryDirectory() as folder:
        prepare_text(*next(iter(read.values())), options, folder)
        if options.compile_together:
            compile_peers(configs, options, folder)
        print_row("round", "", *(title for _, title, *_ in COLUMNS))
        for turn in range(options.rounds):
            for name, (file, config) in read.items():
                micro_batch = micro_batch_of(config, options)
                runs[name]["ours"].append(run_ours(train, file, config, micro_batch, options, folder))
                print_figures(f"{turn + 1} {name}", "ours", runs[name]["ours"][-1])
                runs[name]["peer"].append(run_peer(config, micro_batch, options, inductor_cache(folder)))
                print_figures(f"{turn + 1} {name}", "peer", runs[name]["peer"][-1])
    return report(runs, configs, options)


def report(runs, configs, options):
    peer = next(iter(runs.values()))["peer"][0]
    print(f"\n{peer['gpu']}, peer: torch {peer['torch']}, {options.rounds} rounds")
    middle = {name: {who: medians(rounds) for who, rounds in both.items()} for name, both in runs.items()}
    print_report(runs, middle, configs, options.compile_together > 0)
    return {"gpu": peer["gpu"], "torch": peer["torch"], "medians": middle, "runs": runs}


def compare_trained(options):
    train, checkpoint = options.bin / "train", trained_run.last_checkpoint(options.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        if options.config:
            file, config = read_config(options.config[0])
            check_peer_has(file, config, FROM_WEIGHTS)
            config = with_defaults(config)
        else:
            file, given, config = trained_run.config_of(checkpoint, folder)
            check_peer_has(checkpoint, {key: given[key] for key in given if key != "train"}, FROM_WEIGHTS)
        micro_batch, text = micro_batch_of(config, options), f"{folder}/text.safetensors"
        steps = PEER_WARM_UP + options.peer_steps
        # The same options as ours: the text of all the peer's steps, and prepared where it is not yet.
        lines_of([options.bin / "bench", "text", "--out", text, "--micro-batches",
                  steps * config["train"]["batch_tokens"] // (micro_batch * config["model"]["seq_len"]), "--config", file,
                  "--train.micro_batch", micro_batch, *shlex.split(options.ours)], cwd=ROOT, env=OURS_ENVIRONMENT)
        start = "--train.init_from", checkpoint, *trained_run.slow_rates(ROOT / "configs" / "schema.json")
        first = trained_run.found(train_ours(train, file, micro_batch, options, folder, "--train.steps", 1,
                                             "--train.log_every", 1, *start)[1])
        runs, name = {"ours": [], "peer": []}, file.stem
        print_row("round", "", *(title for _, title, *_ in COLUMNS))
        for turn in range(options.rounds):
            runs["ours"].append(run_ours(train, file, config, micro_batch, options, folder, *start))
            print_figures(f"{turn + 1} {name}", "ours", runs["ours"][-1])
            runs["peer"].append(run_peer(config, micro_batch, options, inductor_cache(folder),
                                         "--weights", checkpoint / "weights.safetensors", "--text", text,
                                         "--rate", trained_run.RATE))
            print_figures(f"{turn + 1} {name}", "peer", runs["peer"][-1])
    ours, peer = runs["ours"][0], runs["peer"][0]
    result = {"checkpoint": str(checkpoint), "first": {"ours": first, "peer": peer["first"]}} | \
        report({name: runs}, {name: config}, options)
    print(f"\n{checkpoint.name} of {options.checkpoint}, real text")
    trained_run.print_found("first step, the same text", first, peer["first"])
    trained_run.print_found(f"at the end, steps {options.steps} and {steps}", ours, peer["last"])
    result["failure"] = trained_run.complaint(first, peer["first"])
    return result


def compare_shares(options):
    """Whole steps of ours with forced choices, experts' shares of tokens equal and unequal."""
    read = {file.stem: (file, config) for file, config in map(read_config, options.config or ["moe_8x2"])}
    for file, config in read.values():
        if not config.get("moe", {}).get("use_moe"):
            sys.exit(f"{file}: --imbalance needs experts, and moe.use_moe is not true")
    read = {name: (file, with_defaults(config)) for name, (file, config) in read.items()}
    spread_of = {"equal": EQUAL_SHARES, "unequal": options.imbalance}
    runs = {name: {kind: [] for kind in spread_of} for name in read}
    with tempfile.TemporaryDirectory() as folder:
        prepare_text(*next(iter(read.values())), options, folder)
        print_row("round", "", *(title for _, title, *_ in COLUMNS), "fullest/mean")
        for turn in range(options.rounds):
            for name, (file, config) in read.items():
                for kind, spread in list(spread_of.items())[::-1 if turn % 2 else 1]:     # a card warms up
                    told = run_ours(options.bin / "train", file, config, micro_batch_of(config, options), options, folder,
                                    "--router.force_balanced", "true", "--router.force_spread", spread)
                    runs[name][kind].append(told)
                    print_figures(f"{turn + 1} {name}", kind, told, f"{told['load']:.3f}")
    result = {"imbalance": options.imbalance, "runs": runs, "medians": {}}
    for name, both in runs.items():
        middle = result["medians"][name] = {kind: medians(rounds) for kind, rounds in both.items()}
        print(f"{name}: tokens/s with shares of a softmax of {options.imbalance:g}-sigma logits over those with equal shares: "
              f"{middle['unequal']['tokens_per_s'] / middle['equal']['tokens_per_s']:.4f}, medians of {options.rounds} rounds")
    return result


def layer_rows(rounds, shapes):
    """rounds: {"ours": [what `bench moe --json` tells a round], "peer": […]}"""
    rows = []
    for i, shape in enumerate(shapes):
        for part in peer_moe_layer.PARTS.values():
            row = {"shape": shape, "part": part}
            median = lambda who, key: statistics.median(told["shapes"][i][part][f"{key}_tflops"] for told in rounds[who])
            for key, peers_key in (("fwd", "fwd"), ("bwd", "bwd"), ("bwd", "bwd_sums")):
                row[f"{key}_ours"], row[f"{peers_key}_peer"] = median("ours", key), median("peer", peers_key)
                row[f"{peers_key}_ratio"] = row[f"{key}_ours"] / row[f"{peers_key}_peer"]
            rows.append(row)
    return rows


def print_layer_report(rows):
    """The peer's "+ sums": its weight gradients, bf16 tensors, are added to fp32 sums, as its training and ours do."""
    columns = ("fwd_ours", "fwd_peer", "fwd_ratio", "bwd_ours", "bwd_peer", "bwd_ratio", "bwd_sums_peer", "bwd_sums_ratio")
    titles = ("fwd ours", "peer", "ratio", "bwd ours", "peer", "ratio", "+ sums", "ratio")
    print(f"{'T, D, N, E, K':<26} {'':<13}" + "".join(f"{title:>10}" for title in titles))
    for row in rows:
        first = row["shape"].replace(",", ", ") if row["part"] == "experts_only" else ""
        cells = [f"{row[column]:10.{3 if column.endswith('ratio') else 1}f}" for column in columns]
        print(f"{first:<26} {row['part'].replace('_', ' '):<13}" + "".join(cells))


def compare_layers(options):
    rounds = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "told")
        common = ["--activation", options.activation, "--repeats", options.repeats, "--json", file,
                  "--shape", *options.shape]
        commands = {"ours": [options.bin / "bench", "moe", "--device", "cuda", *common],
                    "peer": [sys.executable, PEER.with_name("peer_moe_layer.py"), *common]}
        for turn in range(options.rounds):
            for who, command in commands.items():
                told = lines_of(command, env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": inductor_cache(folder)})
                print(f"round {turn + 1}, {who}", *(line for _, line in told), sep="\n", flush=True)
                rounds[who].append(json.loads(file.read_text()))
    device, peer = rounds["peer"][0]["device"], rounds["peer"][0]["program"]
    rows = layer_rows(rounds, options.shape)
    print(f"\nMoE layer, {options.activation}, {device}, peer: {peer}, {options.rounds} rounds, medians in TFLOP/s")
    print_layer_report(rows)
    return {"gpu": device, "peer": peer, "rows": rows, "rounds": rounds}


def main():
    parser = peer_moe_layer.arguments("This program and the PyTorch peer, alternately, on this machine's GPU.")
    parser.prog = "runs/bench.sh"
    parser.add_argument("config", nargs="*", help="configs to train, or the word layer; default: moe_8x2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24, help="of ours, a run; those after the first 4 count")
    parser.add_argument("--peer-steps", type=int, default=10, help=f"of the peer, a run, after {PEER_WARM_UP} that warm up")
    parser.add_argument("--micro-batch", type=int, help="sequences; default: 65536 tokens at width 768, else 32768")
    parser.add_argument("--checkpoint", metavar="RUN", help="start both from this run's last checkpoint, on real text")
    parser.add_argument("--imbalance", type=float, metavar="SIGMA", help="ours alone, experts' shares unequal against equal")
    parser.add_argument("--compile-together", type=int, default=0, metavar="N",
                        help="first compile the peers of N configs at a time; together they need 37 GiB each at d12")
    parser.add_argument("--ours", default="", metavar="OPTIONS", help="more options of ours, as one word")
    parser.add_argument("--peer", default="", metavar="OPTIONS", help="more options of the peer, as one word")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build" / "bin", help="folder of the built programs")
    options = parser.parse_intermixed_args()
    options.bin = options.bin.resolve()
    layer = options.config == ["layer"]
    if options.rounds < 1 or options.steps < 2 * LOG_EVERY or options.peer_steps < 1:
        parser.error(f"--rounds and --peer-steps are at least 1, --steps at least {2 * LOG_EVERY}")
    if options.checkpoint and (layer or len(options.config) > 1):
        parser.error("--checkpoint goes with one config, or none")
    if options.imbalance is not None and (layer or options.checkpoint or not 0 < options.imbalance <= 10):
        parser.error("--imbalance is above 0 and at most 10, and goes with configs alone")
    compare = compare_layers if layer else compare_trained if options.checkpoint else \
        compare_shares if options.imbalance else compare_training
    result = compare(options)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(result.get("failure") or 0)


if __name__ == "__main__":
    main()
