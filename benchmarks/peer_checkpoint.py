"""A checkpoint of ours in peer_torch.py: its weights, the text that ours reads, and what the peer finds with both before
it is compiled.
"""
import json
import math
import mmap
import statistics
import time

import torch


def read_safetensors(path):
    """{name: tensor}, on the CPU and read when used: eight bytes of header length, a JSON header, the tensors' bytes."""
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "I32": torch.int32, "I64": torch.int64}
    with open(path, "rb") as file:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    start = 8 + int.from_bytes(held[:8], "little")
    entries = {name: e for name, e in json.loads(held[8:start]).items() if name != "__metadata__"}
    return {name: torch.frombuffer(held, dtype=dtypes[e["dtype"]], offset=start + e["data_offsets"][0],
                                   count=math.prod(e["shape"])).view(e["shape"]) for name, e in entries.items()}


@torch.no_grad()
def load(gpt, tensors):
    """Every weight from ours, by our names, which must be all there are."""
    layers = range(gpt.c.n_layer)
    sparse, dense = [i for i in layers if gpt.moe_at[i]], [i for i in layers if not gpt.moe_at[i]]
    valued = [i for i in layers if gpt.ve_at[i]]
    names = {"embed": ["embed.weight"], "values": [f"value_embed.{i}.weight" for i in valued], "head": ["head.weight"],
             "ve_gate": [f"blocks.{i}.attn.value_gate.weight" for i in valued],
             "qkv": [f"blocks.{i}.attn.qkv.weight" for i in layers],
             "out": [f"blocks.{i}.attn.out.weight" for i in layers],
             "up": [f"blocks.{i}.mlp.up.weight" for i in dense], "down": [f"blocks.{i}.mlp.down.weight" for i in dense],
             "router": [f"blocks.{i}.moe.router.weight" for i in sparse],
             "expert_up": [f"blocks.{i}.moe.experts.up" for i in sparse],
             "expert_down": [f"blocks.{i}.moe.experts.down" for i in sparse]}
    lambdas = torch.stack([tensors.pop("resid.keep"), tensors.pop("resid.again")])
    given = {k: [lambdas] if k == "lambdas" else [tensors.pop(name) for name in names[k]] for k in gpt.banks}
    assert not tensors, f"the weights hold what this model has not: {', '.join(tensors)}"
    for k, bank in gpt.banks.items():
        for master, weight, values in zip(bank.master, bank.weight, given[k], strict=True):
            assert master.shape == values.shape, f"{k}: {list(values.shape)} is not {list(master.shape)}"
            weight.copy_(master.copy_(values))


@torch.no_grad()
def look(c, gpt, micro_batches):
    """Mean loss, and of the fullest expert's load over the mean the mean over layers and the worst layer's; eager."""
    began = time.time()
    chunks, c.head_chunks = c.head_chunks, 16          # eager logits are several copies at once
    losses, layers = [], []
    for text in micro_batches:
        layers.append([])
        losses.append(gpt.loss(gpt.params, gpt.tables, gpt.taps, text[:, :-1], text[:, 1:], layers[-1])[0].item())
    c.head_chunks = chunks
    loads = [n.max().item() * len(n) / n.sum().item() for n in map(sum, zip(*layers))]
    return dict(loss=statistics.mean(losses), load=statistics.mean(loads or [1.0]), load_worst=max(loads or [1.0]),
                seconds=time.time() - began)
