"""Checks of routing rules, balance, block variants and dynamics, for selftest.py."""

import math

import torch

import balance
import config as options
import inl
import model
import philox
import routing
from selftest_tools import TINY, close, random_parameters, random_text


# ---------------------------------------------------------------- the router
def rule(**keys):
    return options.build({f"router.{k}": v for k, v in keys.items()}).router


def groups_are_kept(method):
    """Against a loop over groups: at most topk_group groups, negative selection scores included."""
    r = rule(topk_method=method, n_group=4, topk_group=2, top_k=3, score="sigmoid")
    bias = torch.linspace(-3, 1, 16, dtype=torch.float64)
    logits = torch.randn(200, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    choice = routing.route(r, logits, torch.arange(200), bias)
    q = (logits.sigmoid() + bias).tolist()
    for t in range(200):
        groups = [sorted(q[t][4 * g: 4 * g + 4], reverse=True) for g in range(4)]
        value = [g[0] if method == "group_limited_greedy" else g[0] + g[1] for g in groups]
        allowed = sorted(range(4), key=lambda g: -value[g])[:2]
        want = sorted((e for e in range(16) if e // 4 in allowed), key=lambda e: -q[t][e])[:3]
        if choice.chosen[t].tolist() != want:
            return False
    return close(choice.weight, logits.sigmoid().gather(1, choice.chosen) / logits.sigmoid().gather(1, choice.chosen).sum(-1, keepdim=True))


def all_groups_is_no_groups():
    logits = torch.randn(50, 8, dtype=torch.float64)
    a, b = (routing.route(rule(topk_method="noaux_tc", n_group=g, topk_group=g), logits, torch.arange(50)).chosen for g in (4, 1))
    return torch.equal(a, b)


def equal_groups_rotate():
    """Zero logits, top 1, one of two groups: the group that holds expert t mod E."""
    r = rule(topk_method="noaux_tc", n_group=2, topk_group=1, top_k=1)
    return routing.route(r, torch.zeros(8, 4), torch.arange(8)).chosen[:, 0].tolist() == [t % 4 for t in range(8)]


def token_ids():
    config = options.build({"moe.n_experts": 5, "router.top_k": 2, "router.type": "token_id", "router.routed_scaling_factor": 3.0})
    choice = routing.by_token_id(config, torch.tensor([0, 4, 11]), torch.zeros(1))
    return choice.chosen.tolist() == [[0, 2], [4, 1], [1, 3]] and close(choice.weight, torch.full((3, 2), 1.5))


def clip_saturates():
    """Beyond the clip no gradient; inside unchanged; the z-loss sees the logits before."""
    r, logits = rule(logit_clip=1.0, score="sigmoid", norm_topk_prob=False), torch.tensor([[2.0, 0.5, -0.5, -3.0]], requires_grad=True)
    choice = routing.route(r, logits, torch.arange(1))
    choice.scores.sum().backward()
    inside = torch.tensor([[0, 1, 1, 0]]) * logits.sigmoid() * (1 - logits.sigmoid())
    return close(logits.grad, inside, 1e-6) and choice.logits is logits


def balanced_by_force():
    choice = routing.route(rule(force_balanced=True), torch.randn(12, 4, dtype=torch.float64), torch.arange(12))
    return torch.bincount(choice.chosen.flatten()).tolist() == [6] * 4 and choice.chosen[1].tolist() == [2, 3]


def cosine_gradients():
    """dc = dl kappa; dW = (r-hat^T dc - its part along w-hat) / |w|; d theta = <dl, l>, 0 where kappa is capped."""
    r, d64 = rule(semantic=True), torch.float64
    p = {"moe.router.weight": torch.randn(5, 3, dtype=d64), "moe.router.semantic.weight": torch.randn(3, 8, dtype=d64),
         "moe.router.semantic.bias": torch.randn(3, dtype=d64), "moe.router.semantic.log_scale": torch.full((1,), math.log(2.0), dtype=d64)}
    p = {k: w.requires_grad_() for k, w in p.items()}
    x, dl = torch.randn(7, 8, dtype=d64), torch.randn(7, 5, dtype=d64)
    l = routing.logits(r, p, x)
    (l * dl).sum().backward()
    w, s = p["moe.router.weight"].detach(), (x @ p["moe.router.semantic.weight"].mT + p["moe.router.semantic.bias"]).detach()
    unit = lambda v: v / v.norm(dim=-1, keepdim=True)
    project = lambda g, v: (g - (g * unit(v)).sum(-1, keepdim=True) * unit(v)) / v.norm(dim=-1, keepdim=True)
    dw, ds = project(2 * dl.T @ unit(s), w), project(2 * dl @ unit(w), s)
    capped = {**p, "moe.router.semantic.log_scale": torch.full((1,), 9.0, dtype=d64, requires_grad=True)}
    big = routing.logits(r, capped, x)
    at_cap, = torch.autograd.grad(big.sum(), capped["moe.router.semantic.log_scale"])
    return (close(p["moe.router.weight"].grad, dw) and close(p["moe.router.semantic.weight"].grad, ds.T @ x)
            and close(p["moe.router.semantic.bias"].grad, ds.sum(0)) and close(p["moe.router.semantic.log_scale"].grad, (dl * l.detach()).sum())
            and l.abs().max() <= 2 and big.abs().max() <= 100 and at_cap.item() == 0
            and bool(routing.logits(r, {**p, "moe.router.semantic.bias": torch.zeros(3, dtype=d64)}, 0 * x).isfinite().all()))


# ---------------------------------------------------------------- random draws
def philox_known_answers():
    """Of the authors' kat_vectors."""
    answers = {(0, 0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
               (philox.MASK64,) * 3: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)}
    return all(tuple(philox.blocks(k, low, high).tolist()) == want for (k, low, high), want in answers.items())


def gumbel_draws_from_softmax():
    """With K = 1 the choice's frequency is softmax(l)."""
    draws, l = philox.Draws(5, 2, range(4000), 10), torch.tensor([1.0, 0.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    count = torch.bincount((l + draws.gumbel(7, 5)).argmax(-1), minlength=5) / 40000
    return bool((count - l.softmax(-1)).abs().max() < 0.01)


def gaussian_moments():
    z = philox.Draws(5, 2, range(4000), 10).gaussian(7, 3)
    return bool(z.mean().abs() < 0.01 and (z.var() - 1).abs() < 0.01 and abs((z[:, 0] * z[:, 1]).mean()) < 0.02)


def noise_moves_the_choice_alone():
    logits, noise = torch.randn(2, 20, 4, dtype=torch.float64)
    noisy = routing.route(rule(score="sigmoid"), logits, torch.arange(20), noise=noise)
    return close(noisy.chosen.double(), (logits + noise).topk(2).indices) and close(noisy.weight.sum(-1), torch.ones(20)) and torch.equal(
        noisy.weight, routing.weights(rule(score="sigmoid"), logits.sigmoid(), noisy.chosen))


def some_experts_stay():
    u = torch.tensor([0.1, 0.6, 0.2, 0.3, 0.05, 0.01, 0.9, 0.02])
    alone = routing.dropped_experts(u, 0.5, rule(top_k=2)).tolist() == [True, False, True, True, True, True, False, True]
    all_gone = routing.dropped_experts(u, 1.0, rule(top_k=2)).sum() == 6
    grouped = routing.dropped_experts(u, 1.0, rule(top_k=3, n_group=2, topk_group=2))
    return alone and bool(all_gone) and (~grouped).nonzero().flatten().tolist() == [1, 3, 4, 6]


# ---------------------------------------------------------------- balance
def ramp_corners():
    r = rule(balance_coef=0.1, aux_ramp_steps=4, aux_ramp_start=1.0, aux_ramp_end=5.0)
    return close([balance.coefficient(r, s) for s in (0, 2, 4, 9)], [0.1, 0.3, 0.5, 0.5]) and balance.coefficient(rule(balance_coef=0.1), 0) == 0.1


def sequence_term():
    """One sequence: the switch loss by K; a batch: the mean over its sequences."""
    config = options.build({"moe.n_experts": 4, "router.top_k": 2})
    one = routing.route(config.router, torch.randn(8, 4, dtype=torch.float64), torch.arange(8))
    two = routing.route(config.router, torch.randn(8, 4, dtype=torch.float64), torch.arange(8))
    alone = [balance.sequence_loss(config, c.chosen, c.probability, 1) for c in (one, two)]
    both = balance.sequence_loss(config, torch.cat([one.chosen, two.chosen]), torch.cat([one.probability, two.probability]), 2)
    switch = balance.balance_loss(config, one.chosen, one.weight, one.probability) / 2
    return close(alone[0], switch) and close(both, sum(alone) / 2)


def z_loss_of_equal_logits():
    config = options.build({"moe.n_experts": 4, "router.balance_coef": 0.0, "router.z_loss_coef": 0.5})
    choice = routing.route(config.router, torch.full((3, 4), 2.0, dtype=torch.float64), torch.arange(3))
    return close(balance.auxiliary(config, choice, 1, 0), 0.5 * (2 + math.log(4)) ** 2)


def bias_moves_by_its_rate():
    config = options.build({"moe.n_experts": 3, "router.bias_balancing": True, "router.bias_update_rate": 0.01})
    state = balance.State()
    state.count(0, torch.tensor([[0, 0, 1]]), 3)          # in two micro-batches: 4, 2, 0
    state.count(0, torch.tensor([[0, 0, 1]]), 3)
    state.after_step(config)
    return close(state.bias[0], [-0.01, 0.0, 0.01]) and state.step == 1 and state.counts == {}


# ---------------------------------------------------------------- blocks and dynamics
def parallel_block_adds_both():
    """Without attention's output both orders are one."""
    tokens, _ = random_text()
    outputs = {}
    for order in ("sequential", "parallel"):
        config = options.build({**TINY, "model.block": order})
        parameters = random_parameters(config)
        for silent in (False, True):
            muted = {k: w * (0 if silent and k.endswith("attn.out.weight") else 1) for k, w in parameters.items()}
            outputs[order, silent] = model.forward(config, muted, tokens)[0]
    return close(outputs["parallel", True], outputs["sequential", True]) and not close(outputs["parallel", False], outputs["sequential", False])


def dynamics(keys=None):
    config = options.build({**TINY, "model.inl.enabled": True, **(keys or {})})
    d64 = torch.float64
    p = {k: torch.randn(s, dtype=d64, requires_grad=True) for k, s in inl.shapes(config).items()}
    h, v = (torch.randn(5, 8, dtype=d64, requires_grad=True) for _ in range(2))
    return config.model.inl, p, h, v


def inl_limits():
    """No force and no velocity: nothing moves. At the mean: a fixed point. Velocity stays within its bound."""
    rules, p, h, v = dynamics({"model.inl.mode": "lite", "model.inl.init_beta": 0.0})
    still = close(inl.step(rules, p, h, 0 * v)[0], h)
    rules, p, h, v = dynamics({"model.inl.velocity_max": 0.3})
    at_mean = inl.step(rules, p, p["inl.mean"].expand(5, 8), 0 * v)
    bounded = inl.step(rules, p, 50 * h, v)[1]
    return still and close(at_mean[0], p["inl.mean"].expand(5, 8)) and bounded.abs().max() <= 0.3 and bounded.abs().max() > 0.29


def inl_gradients():
    """r = (dv' + dt gamma dh') where the velocity is not clamped; dh = dh' - beta r; dv = alpha r; d mean = sum beta r."""
    rules, p, h, v = dynamics({"model.inl.mode": "lite", "model.inl.velocity_max": 0.8})
    dh, dv = torch.randn(2, 5, 8, dtype=torch.float64)
    h2, v2 = inl.step(rules, p, h, v)
    (h2 * dh + v2 * dv).sum().backward()
    r = (dv + 0.1 * 0.5 * dh) * (v2.abs() < 0.8)
    clamped = bool((v2.abs() == 0.8).any())
    return clamped and close(h.grad, dh - 0.1 * r) and close(v.grad, 0.9 * r) and close(p["inl.mean"].grad, (0.1 * r).sum(0))


def bounded_mean_may_return():
    """Beyond a bound the value is the bound's, and only a gradient whose descent leads back is left."""
    x = torch.tensor([-3.0, -3.0, 0.0, 3.0, 3.0], requires_grad=True)
    held = inl.Held.apply(x, -1.0, 1.0)
    held.backward(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]))
    return held.tolist() == [-1, -1, 0, 1, 1] and x.grad.tolist() == [0, -1, 1, 1, 0]


CHECKS = {
    "groups: largest": lambda: groups_are_kept("group_limited_greedy"),
    "groups: two largest": lambda: groups_are_kept("noaux_tc"),
    "all groups = no groups": all_groups_is_no_groups,
    "equal groups rotate": equal_groups_rotate,
    "token ids": token_ids,
    "logit clip": clip_saturates,
    "force balanced": balanced_by_force,
    "cosine gradients": cosine_gradients,
    "Philox": philox_known_answers,
    "gumbel": gumbel_draws_from_softmax,
    "gaussian": gaussian_moments,
    "noise moves the choice alone": noise_moves_the_choice_alone,
    "some experts stay": some_experts_stay,
    "ramp corners": ramp_corners,
    "sequence term": sequence_term,
    "z-loss of equal logits": z_loss_of_equal_logits,
    "bias by its rate": bias_moves_by_its_rate,
    "parallel block": parallel_block_adds_both,
    "INL limits": inl_limits,
    "INL gradients": inl_gradients,
    "INL mean within bounds": bounded_mean_may_return,
}
