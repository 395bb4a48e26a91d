"""Checks the Python model by itself: closed forms, finite differences and hand counts. The yardstick is measured first.

    python selftest.py          prints a line a check, ends with 'N passed, N failed'; exit status 1 when one failed
"""

import itertools
import math
import re
import sys
from pathlib import Path

import torch

import balance
import config as options
import model
import optimizers
import routing
import selftest_moe
from selftest_tools import LLAMA, TINY, close, finite_differences, random_parameters


# ---------------------------------------------------------------- the model
def causal(pattern):
    """Changing a token changes no logits before it, nor beyond the reach of two windows of 3."""
    config = options.build({**TINY, "model.seq_len": 6, "model.window_pattern": pattern})
    config.model.n_layer = 1 if pattern == "L" else 2
    parameters = random_parameters(config)
    tokens = torch.arange(6)[None]
    changed = tokens.clone()
    changed[0, 2] = 9
    same = (model.forward(config, parameters, tokens)[0] - model.forward(config, parameters, changed)[0]).abs().sum(-1)[0] == 0
    return same.tolist()[:2] == [True, True] and not same[2:].any()


def window_limits_one_layer():
    """The first of two layers sees 3 positions: its output at i depends on i-2..i alone."""
    config = options.build({**TINY, "model.window_pattern": "S"})
    parameters = random_parameters(config)
    p = {k.removeprefix("blocks.0."): w for k, w in parameters.items() if k.startswith("blocks.0.")}
    n = torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True)
    model.attention(config, 0, p, n, torch.zeros(1, 6, dtype=torch.long), None)[0, 4].sum().backward()
    return (n.grad[0].abs().sum(-1) > 0).tolist() == [False, False, True, True, True, False]


def gqa_is_repeated_heads():
    grouped = options.build({**TINY, "model.n_head": 4, "model.n_kv_head": 2, "model.value_embeds": False})
    full = options.build({**TINY, "model.n_head": 4, "model.n_kv_head": 4, "model.value_embeds": False})
    parameters = random_parameters(grouped)
    wide = dict(parameters)
    for i in range(2):
        q, k, v = parameters[f"blocks.{i}.attn.qkv.weight"].split([16, 8, 8])
        twice = lambda w: w.view(2, 4, 8).repeat_interleave(2, 0).reshape(16, 8)
        wide[f"blocks.{i}.attn.qkv.weight"] = torch.cat([q, twice(k), twice(v)])
    tokens = torch.arange(6)[None]
    return close(model.forward(grouped, parameters, tokens)[0], model.forward(full, wide, tokens)[0])


def rope_sees_differences_only():
    q, k = torch.randn(2, 4, dtype=torch.float64)
    turned = [model.rotate(x.expand(1, 6, 1, 4), 10000.0)[0, :, 0] for x in (q, k)]
    scores = turned[0] @ turned[1].T
    return close(scores[1:, 1:], scores[:-1, :-1])


def softcap_bounds():
    config = options.build({**TINY, "model.logit_softcap": 2.0})
    parameters = {k: 50 * w for k, w in random_parameters(config).items()}
    return model.forward(config, parameters, torch.arange(6)[None])[0].abs().max() <= 2


def one_expert_is_the_dense_mlp():
    dense = options.build({**TINY, **LLAMA})
    sparse = options.build({**TINY, **LLAMA, "moe.use_moe": True, "moe.n_experts": 1, "router.top_k": 1, "moe.d_expert": 12})
    parameters = random_parameters(dense)
    renamed = dict(parameters)
    for i in range(2):
        renamed[f"blocks.{i}.moe.experts.up"] = parameters[f"blocks.{i}.mlp.up.weight"][None]
        renamed[f"blocks.{i}.moe.experts.down"] = parameters[f"blocks.{i}.mlp.down.weight"][None]
        renamed[f"blocks.{i}.moe.router.weight"] = torch.randn(1, 8, dtype=torch.float64)
    tokens = torch.arange(6)[None]
    return close(model.forward(dense, parameters, tokens)[0], model.forward(sparse, renamed, tokens)[0])


# ---------------------------------------------------------------- the router
def router(**keys):
    return options.build({f"router.{key}": value for key, value in keys.items()}).router


def zeros_rotate_evenly():
    position = torch.arange(60)
    for e, k in itertools.product((2, 3, 4, 8), (1, 2)):
        chosen = routing.choose(torch.zeros(60, e), k, position, True)
        count = torch.bincount(chosen.flatten(), minlength=e)
        if count.max() - count.min() > (0 if 60 * k % e == 0 else 1):
            return False
    return routing.choose(torch.zeros(3, 4), 2, position[:3], False).tolist() == [[0, 1]] * 3


def weight_gradient(score, normalize):
    """d loss / d logits for loss = sum g w, against the closed forms."""
    rule = router(score=score, norm_topk_prob=normalize, top_k=2, routed_scaling_factor=1.5)
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    choice = routing.route(rule, logits, torch.arange(5))
    chosen, w, p = choice.chosen, choice.weight, choice.probability
    g = torch.randn(5, 2, dtype=torch.float64)
    (g * w).sum().backward()
    w, p, s, factor = w.detach(), p.detach(), logits.detach().sigmoid().gather(1, chosen), 1.5
    if normalize:
        mean = (g * w).sum(-1, keepdim=True) / factor
        on_chosen = {"softmax": w * (g - mean),
                     "sigmoid": factor * s * (1 - s) / s.sum(-1, keepdim=True) * (g - mean)}[score]
    elif score == "softmax":
        full = torch.zeros_like(p).scatter(1, chosen, g)
        return close(logits.grad, factor * p * (full - (p * full).sum(-1, keepdim=True)))
    else:
        on_chosen = factor * g * (s * (1 - s) if score == "sigmoid" else 1)
    return close(logits.grad, torch.zeros_like(p).scatter(1, chosen, on_chosen))


def balance_gradient(kind, score):
    config = options.build({"moe.n_experts": 4, "router.score": score, "router.balance_loss": kind})
    logits = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    choice = routing.route(config.router, logits, torch.arange(7))
    balance.balance_loss(config, choice.chosen, choice.weight, choice.probability).backward()
    p, t, e = choice.probability.detach(), 7, 4
    f = torch.bincount(choice.chosen.flatten(), minlength=e).double() / t
    if kind == "switch":
        want = e / t * p * (f - (f * p).sum(-1, keepdim=True))
    else:
        a = 2 * e * (p.mean(0) - 1 / e)
        want = p * (a - (a * p).sum(-1, keepdim=True)) / t
    if score == "sigmoid":
        want = want * (1 - logits.detach().sigmoid())
    return close(logits.grad, want)


def balance_value(kind, logits, top_k, want, normalize=False):
    config = options.build({"moe.n_experts": 4, "router.balance_loss": kind, "router.top_k": top_k,
                            "router.balance_topk_normalize": normalize})
    choice = routing.route(config.router, logits.double(), torch.arange(len(logits)))
    return close(balance.balance_loss(config, choice.chosen, choice.weight, choice.probability), want)


# ---------------------------------------------------------------- optimizers
def polar_is_near_orthogonal():
    u = torch.randn(24, 16, dtype=torch.float64)
    o = optimizers.polar(u, 3)
    s = torch.linalg.svdvals(o)
    wide = close(optimizers.polar(u.T, 3), o.T)
    return wide and s.max() < 1.11 and s.min() > 0.89 and optimizers.polar(torch.zeros(4, 4), 3).abs().max() == 0


def polar_table_is_the_programs():
    source = Path(__file__).parents[2] / "src/optim/polar_express.cpp"
    numbers = [float(x) for x in re.findall(r"-?\d+\.\d+", source.read_text())]
    return numbers == [x for row in optimizers.POLAR_EXPRESS for square in row for x in square]


def variance_reduction_keeps_norm():
    o = torch.randn(6, 4, dtype=torch.float64)
    second = torch.zeros(6, 1, dtype=torch.float64)
    out = optimizers.reduce_variance(o, second, 0.95)
    return close(out.norm(), o.norm()) and close(out.norm(dim=1), out.norm(dim=1).mean().expand(6))


def adamw_closed_form():
    """Equal gradients: the corrected moments are g and g^2, so every step is lr sign(g)."""
    weight, grad = torch.ones(3, dtype=torch.float64), torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    state = optimizers.AdamW(weight, 0.1, 0.8, 0.95, 1e-30, 0.0)
    for _ in range(3):
        state.update(weight, grad, 1.0)
    return close(weight, 1 - 0.3 * grad.sign())


def schedule_corners():
    s = options.build({"optim.schedule.warmup_steps": 4, "optim.schedule.final_fraction": 0.1}).optim.schedule
    factor = lambda step: optimizers.learning_rate_factor(s, step, 20)
    want = {0: 0.25, 3: 1.0, 10: 1.0, 15: 0.55, 19: 0.19}
    return all(abs(factor(step) - value) < 1e-12 for step, value in want.items())


def optimizer_covers_everything():
    config = options.build({**TINY, **LLAMA, "moe.use_moe": True})
    parameters = random_parameters(config)
    before = {k: w.clone() for k, w in parameters.items()}
    optimizers.Optimizer(config, parameters).apply(parameters, {k: torch.ones_like(w) for k, w in parameters.items()})
    return all((parameters[k] != before[k]).any() and parameters[k].isfinite().all() for k in parameters)


# ---------------------------------------------------------------- hand counts
D12 = {"moe.use_moe": True, "moe.expert_hidden_mult": 2}
WANT_PARAMETERS = {
    "d12 8x2": (D12, 456206616),
    "d12 dense": ({}, 286263576),
    "d12 8x2, expert width 4 D": ({"moe.use_moe": True}, 682699032),
    "d12 8x2, one shared expert": ({**D12, "moe.n_shared_experts": 1}, 484518168),
    "d12 8x2, gate of 12 channels": ({**D12, "model.value_gate_channels": 12}, 456205176),
}


def llama_moe(layers, d, heads, kv, c, n, experts, top_k):
    return {**LLAMA, "model.n_layer": layers, "model.n_embd": d, "model.n_head": heads, "model.n_kv_head": kv,
            "model.head_dim": c, "model.vocab_size": 32000, "model.qk_norm": False, "moe.use_moe": True,
            "moe.n_experts": experts, "moe.d_expert": n, "router.top_k": top_k}


WANT_PARAMETERS["llama small 4x1"] = (llama_moe(8, 1024, 16, 16, 64, 4096, 4, 1), 501793792)
WANT_PARAMETERS["llama medium 8x2"] = (llama_moe(18, 1024, 16, 4, 64, 4096, 8, 2), 1924846592)
WANT_PARAMETERS["llama large 16x2"] = (llama_moe(17, 1536, 12, 4, 128, 6144, 16, 2), 7906472448)
WANT_PARAMETERS["mixtral 8x2"] = (llama_moe(32, 4096, 32, 8, 128, 14336, 8, 2), 46702792704)


def parameter_count(overrides):
    return sum(math.prod(shape) for shape in model.parameter_shapes(options.build(overrides)).values())


MOE = {"moe.use_moe": True, "router.z_loss_coef": 0.1, "router.balance_coef": 0.3}
CHECKS = {
    "finite differences: dense": lambda: finite_differences({"model.window_pattern": "SL"}),
    "finite differences: llama, tied": lambda: finite_differences({**LLAMA, "model.qk_norm_weight": True, "model.tie_head": True}),
    "finite differences: gelu": lambda: finite_differences({"model.mlp": "gelu"}),
    "finite differences: MoE softmax": lambda: finite_differences(MOE),
    "finite differences: MoE sigmoid, shared": lambda: finite_differences({**MOE, "router.score": "sigmoid", "moe.n_shared_experts": 2}),
    "finite differences: MoE geglu, sequence": lambda: finite_differences({**MOE, "model.mlp": "geglu", "router.balance_scope": "sequence"}),
    "finite differences: MoE cv_squared_topk": lambda: finite_differences({**MOE, "router.balance_loss": "cv_squared_topk"}),
    "causal": lambda: causal("L"),
    "causal, two layers": lambda: causal("S"),
    "window": window_limits_one_layer,
    "GQA = repeated heads": gqa_is_repeated_heads,
    "rotary scores": rope_sees_differences_only,
    "soft cap": softcap_bounds,
    "one expert = dense": one_expert_is_the_dense_mlp,
    "zero router rotates": zeros_rotate_evenly,
    "switch uniform = K": lambda: balance_value("switch", torch.zeros(8, 4), 2, 2.0),
    "switch uniform, by K = 1": lambda: balance_value("switch", torch.zeros(8, 4), 2, 1.0, True),
    "switch one-hot = E": lambda: balance_value("switch", 1e3 * torch.eye(4)[[0] * 8], 1, 4.0),
    "cv uniform = 0": lambda: balance_value("cv_squared", torch.zeros(8, 4), 2, 0.0),
    "cv one-hot = E - 1": lambda: balance_value("cv_squared", 1e3 * torch.eye(4)[[0] * 8], 1, 3.0),
    "cv top-k one-hot = E - 1": lambda: balance_value("cv_squared_topk", 1e3 * torch.eye(4)[[0] * 8], 1, 3.0),
    "polar": polar_is_near_orthogonal,
    "polar's table": polar_table_is_the_programs,
    "variance reduction": variance_reduction_keeps_norm,
    "AdamW": adamw_closed_form,
    "schedule": schedule_corners,
    "every parameter has an optimizer": optimizer_covers_everything,
}
for score_, normalize_ in (("softmax", True), ("softmax", False), ("sigmoid", True), ("sigmoid", False), ("identity", False)):
    CHECKS[f"router gradient: {score_}{', normalised' * normalize_}"] = lambda s=score_, n=normalize_: weight_gradient(s, n)
for kind_, score_ in itertools.product(("switch", "cv_squared"), ("softmax", "sigmoid")):
    CHECKS[f"balance gradient: {kind_}, {score_}"] = lambda k=kind_, s=score_: balance_gradient(k, s)
for label_, (overrides_, want_) in WANT_PARAMETERS.items():
    CHECKS[f"parameters: {label_}"] = lambda o=overrides_, w=want_: parameter_count(o) == w
CHECKS |= selftest_moe.CHECKS


def main():
    torch.manual_seed(0)
    failed = 0
    for name, check in CHECKS.items():
        passed = bool(check())
        failed += not passed
        print(f"{'ok    ' if passed else 'FAILED'}  {name}")
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
