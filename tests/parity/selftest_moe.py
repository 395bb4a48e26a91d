"""Checks of the sparse layer's options for selftest.py: closed forms, invariants, limits, and finite differences."""

import math

import torch

import balance
import capacity
import config as options
import model
import moe
import routing
import selftest_router
from selftest_tools import LLAMA, TINY, close, finite_differences, random_parameters, random_text

SPARSE = {"moe.use_moe": True, "router.z_loss_coef": 0.1, "router.balance_coef": 0.3}
TIGHT = {**SPARSE, "moe.capacity_factor": 0.75}      # 12 tokens, K 2, E 4: 5 of 6 expected rows
GROUPS = {"moe.n_experts": 8, "router.n_group": 4, "router.topk_group": 2, "router.topk_method": "noaux_tc"}
CONSTANT = {"moe.overflow": "null_expert", "moe.null_expert": "constant"}


# ---------------------------------------------------------------- one layer
def layer(overrides, step=0, change=None, seed=0):
    """(config, parameters of layer 0, x [2, 6, 8], y, aux) of one sparse layer; all can be differentiated."""
    config = options.build({**TINY, "moe.use_moe": True, **overrides})
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    p = {name: (draw(*shape) / math.sqrt(shape[-1])).requires_grad_() for name, shape in moe.shapes(config, 8).items()}
    x = draw(2, 6, 8).requires_grad_()
    with torch.no_grad():
        if change:
            change(p, x)
    y, aux = moe.forward(config, p, x, random_text()[0], model.mlp, balance.State(step), 0)
    return config, p, x, y, aux


def same_output(first, second, step=0, change=None):
    """The outputs of two configurations with the same weights by name."""
    _, p, x, y, _ = layer(first, step, change)
    config = options.build({**TINY, "moe.use_moe": True, **second})
    z, _ = moe.forward(config, p, x, random_text()[0], model.mlp, balance.State(step), 0)
    return close(y, z)


def chosen_and_kept(overrides):
    config, p, x, _, _ = layer(overrides)
    flat = x.reshape(12, 8)
    clean = routing.logits(config.router, p, flat)
    choice = routing.route(config.router, clean, torch.arange(6).repeat(2))
    settled = moe.settle(config, choice, moe.importance_of(config, p, flat), 0)
    return config, choice, settled


# ---------------------------------------------------------------- capacity
def capacity_by_step():
    """Factor 1.1 of 80 rows over 4 experts is exactly 22; ramps from the minimum; absolute numbers win."""
    build = lambda **keys: options.build({f"moe.{k}": v for k, v in {"n_experts": 4, **keys}.items()}).moe
    at = lambda moe_, step=0: capacity.at_step(moe_, 2, 40, step)
    ramp = build(capacity_factor=1.1, min_expert_capacity=6, capacity_ramp_steps=8)
    above = build(capacity_factor=1.0, min_expert_capacity=4, max_expert_capacity=12, capacity_ramp_steps=4)
    return ([at(ramp, s) for s in (0, 4, 8, 9)] == [6, 14, 22, 22] and [at(above, s) for s in (0, 2, 4)] == [4, 8, 12]
            and at(build(expert_capacity=3)) == 3 and at(build()) is None and at(build(capacity_factor=0.1)) == 2)


def kept_by_policy(policy):
    """Nobody holds more than the capacity; of one expert's rows none that is kept ranks behind one that is dropped; a
    larger capacity keeps what the smaller one kept."""
    chosen = torch.randint(4, (30, 2), generator=torch.Generator().manual_seed(3))
    weight = torch.rand(30, 2, generator=torch.Generator().manual_seed(4))
    value = torch.rand(30, generator=torch.Generator().manual_seed(5))
    priority = capacity.priorities(policy, weight, value)
    rank = {"position": lambda t, k: (k, t), "weight": lambda t, k: (-weight[t, k].item(), k, t),
            "importance": lambda t, k: (-value[t].item(), k, t)}[policy]
    before = torch.zeros_like(chosen, dtype=torch.bool)
    for room in (0, 3, 11, 60):
        keep = capacity.place(chosen, priority, room, 4)
        for e in range(4):
            slots = sorted(((t, k) for t in range(30) for k in range(2) if chosen[t, k] == e), key=lambda tk: rank(*tk))
            if [bool(keep[tk]) for tk in slots] != [i < room for i in range(len(slots))]:
                return False
        if (before & ~keep).any():
            return False
        before = keep
    return bool(before.all())


def rerouted_is_legal(policy, rounds):
    """No expert above its capacity, no expert twice in a token, kept rows stay, weights sum to the factor, and with many
    rounds a slot is only left where every expert outside its token is full."""
    keys = {"moe.capacity_factor": 0.75, "moe.overflow": "reroute", "moe.drop_policy": policy, "moe.reroute_rounds": rounds,
            "router.routed_scaling_factor": 1.5, "moe.token_importance": "norm", "moe.n_experts": 5}
    config, choice, (chosen, weight, keep, _) = chosen_and_kept(keys)
    room = capacity.at_step(config.moe, 2, 12, 0)
    count = torch.bincount(chosen[keep], minlength=5)
    first = capacity.place(choice.chosen, capacity.priorities(policy, choice.weight, torch.zeros(12)), room, 5)
    stay = (chosen == choice.chosen)[first].all() if policy == "position" else True
    distinct = all(chosen[t][keep[t]].unique().numel() == keep[t].sum() for t in range(12))
    full = all(count[e] == room or e in chosen[t] for t in range(12) for e in range(5) if not keep[t].all())
    return bool(count.max() <= room and stay and distinct and (rounds < 5 or full)) and close(weight.sum(-1), torch.full((12,), 1.5))


def null_zero_is_drop():
    keys = {**TIGHT, "router.z_loss_coef": 0.0, "router.balance_coef": 0.0}
    return same_output(keys, {**keys, "moe.overflow": "null_expert"})


def null_copy_adds_weighted_input():
    """The copy expert is linear in x beside dropping: the difference is the overflowing weight times x."""
    config, choice, (_, weight, keep, overflow) = chosen_and_kept({**TIGHT, "moe.overflow": "null_expert", "moe.null_expert": "copy"})
    _, _, x, y, _ = layer({**TIGHT, "moe.overflow": "null_expert", "moe.null_expert": "copy"})
    _, _, _, dropped, _ = layer(TIGHT)
    lost = (choice.weight * ~keep).sum(-1, keepdim=True)
    return bool(lost.sum() > 0) and close(overflow.sum(-1, keepdim=True), lost) and close(y - dropped, lost.view(2, 6, 1) * x)


def null_ffn_is_an_extra_expert():
    """As many overflowing rows as there are, through the last of E + 1 experts."""
    keys = {**TIGHT, "moe.overflow": "null_expert", "moe.null_expert": "ffn"}
    config, p, x, y, _ = layer(keys)
    flat = x.reshape(12, 8)
    choice = routing.route(config.router, routing.logits(config.router, p, flat), torch.arange(6).repeat(2))
    chosen, weight, keep, _ = moe.settle(config, choice, None, 0)
    want = torch.zeros_like(flat)
    for t in range(12):
        for k in range(2):
            e = chosen[t, k] if keep[t, k] else 4
            want[t] += weight[t, k] * model.mlp("relu2", flat[t], p["moe.experts.up"][e], p["moe.experts.down"][e])
    return close(y.reshape(12, 8), want)


def survivors_keep_the_sum():
    weight, keep = torch.tensor([[0.3, 0.5], [0.2, 0.4], [0.6, 0.1]]), torch.tensor([[True, False], [True, True], [False, False]])
    return close(capacity.survivors_weight(weight, keep), [[0.8, 0.0], [0.2, 0.4], [0.0, 0.0]], 1e-6)


# ---------------------------------------------------------------- importance, zero experts, dense path, warm-up
def copied(parameters, x):
    """For layer(change=...): the same weights by name, and the same input."""
    return lambda own, z: ([w.copy_(parameters[name]) for name, w in own.items()], z.copy_(x))


def importance_gradient():
    """di = sum_k g w 2 sigma (1 - sigma), w before the factor; sum_k g w is <dy, y> of the layer without importance."""
    _, p, x, y, _ = layer({"moe.token_importance": "learned"})
    dy = torch.randn_like(y)
    (y * dy).sum().backward()
    u, beta, flat = p["moe.importance.weight"], p["moe.importance.bias"], x.detach().reshape(12, 8)
    plain = layer({}, change=copied(p, x))[3]
    share = (flat @ u + beta).detach().sigmoid()
    di = (dy * plain).sum(-1).reshape(12) * 2 * share * (1 - share)
    return close(u.grad, di @ flat) and close(beta.grad, di.sum()[None])


def all_to_zero_experts(kind):
    """Two zero experts of a kind with the largest scores: y = 0, or the sum of weights times x."""
    def prefer(p, x):
        p["moe.router.weight"].zero_()
        p["moe.router.weight"][4:, 0] = 50
        x[..., 0] = 1
    _, _, x, y, _ = layer({f"moe.zero_experts.{kind}": 2, "router.norm_topk_prob": True}, change=prefer)
    return close(y, x if kind == "copy" else torch.zeros_like(x))


def tau_weighs_zero_experts():
    """Uniform choices of 4 experts and 2 zero experts: E' sum f P = K (4 + 2 tau) / 6."""
    config = options.build({"moe.n_experts": 4, "moe.zero_experts.copy": 2, "moe.zero_expert_tau": 0.25})
    choice = routing.route(config.router, torch.zeros(6, 6, dtype=torch.float64), torch.arange(6))
    return close(balance.balance_loss(config, choice.chosen, choice.weight, choice.probability), 2 * 4.5 / 6)


def mix_gradient():
    """da = m sigma'(a) <dy, y_moe - FFN>, at half of the warm-up."""
    keys = {"moe.flexible_ffn": True, "moe.warmup_steps": 4, "moe.n_shared_experts": 1}
    _, p, x, y, _ = layer(keys, 2)
    dy = torch.randn_like(y)
    (y * dy).sum().backward()
    mixed = lambda a: {**p, "moe.mix": torch.full((1,), a)}
    at = lambda a, step=9: layer(keys, step, copied(mixed(a), x))[3]
    share = p["moe.mix"].detach().sigmoid()
    slope = 0.5 * share * (1 - share) * (dy * (at(60.0) - at(-60.0))).sum()
    dense = model.mlp("relu2", x, p["moe.dense.up.weight"], p["moe.dense.down.weight"])
    return close(p["moe.mix"].grad, slope) and close(at(-60.0), dense) and close(at(3.0, 0), dense)


def warm_up_limits():
    """Nothing of the routed experts at step 0, everything from step W on."""
    keys = {"moe.warmup_steps": 4, "moe.n_shared_experts": 1}
    _, p, x, y, _ = layer(keys, 0)
    shared = model.mlp("relu2", x, p["moe.shared.up.weight"], p["moe.shared.down.weight"])
    return close(y, shared) and same_output(keys, {**keys, "moe.warmup_steps": 0}, 4) and not same_output(
        keys, {**keys, "moe.warmup_steps": 0}, 3)


def dense_average_is_the_mean():
    keys = {"moe.warmup_steps": 4, "moe.n_shared_experts": 1, "moe.warmup_mode": "dense_average"}
    _, p, x, y, _ = layer(keys, 1)
    shared = model.mlp("relu2", x, p["moe.shared.up.weight"], p["moe.shared.down.weight"])
    mean = torch.stack([model.mlp("relu2", x, p["moe.experts.up"][e], p["moe.experts.down"][e]) for e in range(4)]).mean(0)
    return close(y, 0.75 * shared + 0.25 * mean) and same_output(keys, {**keys, "moe.warmup_steps": 0}, 4)


INL = {"model.inl.enabled": True, "model.inl.controller_hidden": 5}
DIFFERENCES = {
    "parallel block": {"model.block": "parallel", **SPARSE},
    "INL shared": INL,
    "INL a module a layer, mean clamped": {**INL, **SPARSE, "model.inl.shared": False, "model.inl.mu_min": -2.0, "model.inl.mu_max": 2.0},
    "INL lite": {**INL, "model.inl.mode": "lite", "model.inl.velocity_max": 0.5},
    "capacity, weight": {**TIGHT, "moe.drop_policy": "weight"},
    "capacity, renormalised": {**TIGHT, "moe.renormalize_after_drop": True},
    "capacity, learned importance": {**TIGHT, "moe.drop_policy": "importance", "moe.token_importance": "learned"},
    "null copy": {**TIGHT, "moe.overflow": "null_expert", "moe.null_expert": "copy"},
    "null constant": {**TIGHT, **CONSTANT},
    "null ffn, swiglu": {**LLAMA, **TIGHT, "moe.overflow": "null_expert", "moe.null_expert": "ffn"},
    "reroute": {**TIGHT, "moe.overflow": "reroute", "router.score": "sigmoid", "moe.drop_policy": "weight"},
    "zero experts": {**SPARSE, "moe.zero_experts.zero": 1, "moe.zero_experts.copy": 1, "moe.zero_experts.constant": 2,
                     "moe.zero_expert_tau": 0.5, "router.top_k": 3},
    "flexible": {**SPARSE, "moe.flexible_ffn": True, "moe.n_shared_experts": 1},
    "warm-up": ({**SPARSE, "moe.warmup_steps": 3, "moe.flexible_ffn": True}, 1),
    "dense average": ({**SPARSE, "moe.warmup_steps": 3, "moe.warmup_mode": "dense_average", "moe.n_shared_experts": 1}, 1),
    "token id": {**SPARSE, "router.type": "token_id"},
    "groups": {**SPARSE, **GROUPS, "router.score": "sigmoid"},
    "logit clip": {**SPARSE, "router.logit_clip": 0.5, "router.seq_balance_coef": 0.2},
    "ramp": ({**SPARSE, "router.aux_ramp_steps": 4, "router.aux_ramp_end": 3.0}, 1),
    "semantic": {**SPARSE, "router.semantic": True, "router.semantic_dim": 3},
    "force balanced": {**SPARSE, "router.force_balanced": True},
    "jitter": {**SPARSE, "router.noise": "jitter", "router.noise_scale": 0.1},
    "gumbel, whole experts dropped": {**SPARSE, "router.noise": "gumbel", "moe.expert_dropout": 0.5},
    "dropout, of hidden units too": {**SPARSE, "model.dropout": 0.3, "moe.expert_hidden_dropout": 0.3},
}

CHECKS = {
    "capacity at a step": capacity_by_step,
    **{f"kept rows: {policy}": lambda p=policy: kept_by_policy(p) for policy in ("position", "weight", "importance")},
    **{f"reroute: {policy}, {n} rounds": lambda p=policy, r=n: rerouted_is_legal(p, r)
       for policy in ("position", "weight", "importance") for n in (1, 2, 8)},
    "null zero = drop": null_zero_is_drop,
    "null copy": null_copy_adds_weighted_input,
    "null ffn = an extra expert": null_ffn_is_an_extra_expert,
    "renormalised survivors": survivors_keep_the_sum,
    "importance gradient": importance_gradient,
    "zero experts take all: zero": lambda: all_to_zero_experts("zero"),
    "zero experts take all: copy": lambda: all_to_zero_experts("copy"),
    "zero experts weigh tau": tau_weighs_zero_experts,
    "mix gradient": mix_gradient,
    "warm-up limits": warm_up_limits,
    "dense average": dense_average_is_the_mean,
    **selftest_router.CHECKS,
}
for label_, case_ in DIFFERENCES.items():
    keys_, step_ = case_ if isinstance(case_, tuple) else (case_, 0)
    CHECKS[f"finite differences: {label_}"] = lambda o=keys_, s=step_: finite_differences(o, s)
