"""What the self tests share: a tiny model, closeness, and finite differences in fp64."""

import math

import torch

import balance
import config as options
import model

TINY = {"model.n_layer": 2, "model.n_embd": 8, "model.head_dim": 4, "model.seq_len": 6, "model.vocab_size": 11,
        "model.value_gate_channels": 3, "model.ffn_hidden": 12, "moe.d_expert": 6, "moe.n_experts": 4}
LLAMA = {"model.mlp": "swiglu", "model.norm_weight": True, "model.value_embeds": False, "model.resid_scalars": False,
         "model.logit_softcap": 0.0, "model.embed_norm": False, "model.n_head": 4, "model.n_kv_head": 2}


def random_parameters(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[-1])
    return {name: draw(shape) for name, shape in model.parameter_shapes(config).items()}


def random_text():
    """Inputs and targets [2, 6]; the last target of a sequence is ignored."""
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -1
    return tokens, targets


def close(a, b, bound=1e-10):
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return bool((a - b).norm() <= bound * (1 + b.norm()))


def finite_differences(overrides, step=0):
    """The gradient of loss + auxiliary at a training step along a random direction of every parameter, in fp64. Counts
    and choices are constants while none changes, which a step of 1e-6 leaves so."""
    config = options.build({**TINY, **overrides})
    parameters = random_parameters(config)
    tokens, targets = random_text()
    grads, _ = model.gradients(config, parameters, [(tokens, targets)], balance.State(step))

    def total(shifted):
        loss, auxiliary, _ = model.losses(config, shifted, tokens, targets, state=balance.State(step))
        return (loss + auxiliary).item()

    for name, weight in parameters.items():
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        h = 1e-6 / direction.norm()
        up, down = ({**parameters, name: weight + sign * h * direction} for sign in (1, -1))
        slope = (total(up) - total(down)) / (2 * h)
        if not close((grads[name] * direction).sum(), slope, 1e-6):
            print(f"        {name}: {(grads[name] * direction).sum().item():.9g} instead of {slope:.9g}")
            return False
    return True
