"""From a token to its experts: logits, scores, the choice, the weights. Everything in the dtype of the input.

Shapes: T tokens of one micro-batch, E columns of the router (zero experts included), K experts a token.
"""

import contextlib
import math
from types import SimpleNamespace

import torch

_gaps = None     # while watched: the smallest gap of each routing


@contextlib.contextmanager
def watched_gaps():
    """Yields a list that collects how near each decision is to a tie: a token's last chosen score and the best one not
    chosen, kept and rejected groups, kept and dropped rows. Below rounding, rounding decides."""
    global _gaps
    _gaps = []
    try:
        yield _gaps
    finally:
        _gaps = None


def watch(gap):
    if _gaps is not None:
        _gaps.append(float(gap))


def columns(moe):
    """Columns of the router: experts and zero experts."""
    z = moe.zero_experts
    return moe.n_experts + z.zero + z.copy + z.constant


# ---------------------------------------------------------------- logits
def logits(router, p, x):
    """[T, E]: x W^T, or kappa cos(W_s x + b_s, W_e) with norms of at least 1e-6 (X-MoE, Chi et al. 2022)."""
    weight = p["moe.router.weight"]
    if not router.semantic:
        return x @ weight.mT
    unit = lambda v: v / v.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    projected = x @ p["moe.router.semantic.weight"].mT + p["moe.router.semantic.bias"]
    kappa = p["moe.router.semantic.log_scale"].exp().clamp(max=100)
    return kappa * (unit(projected) @ unit(weight).mT)


def score(router, clipped):
    if router.score == "softmax":
        return clipped.softmax(-1)
    return clipped.sigmoid() if router.score == "sigmoid" else clipped


# ---------------------------------------------------------------- the choice
def tie_order(position, e, top_k, rotate):
    """[T, E]: the expert at each rank of the tie order, (e - position*K) mod E or e."""
    turn = position[:, None] * top_k if rotate else torch.zeros_like(position)[:, None]
    return (torch.arange(e)[None, :] + turn) % e


def choose(scores, top_k, position, rotate):
    """[T, K] experts of the largest scores."""
    order = tie_order(position, scores.shape[-1], top_k, rotate)
    ranked = scores.gather(1, order).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, ranked[:, :top_k])


def mask_groups(router, q, position):
    """q with -inf outside each token's best topk_group groups of consecutive experts. A group's score is the sum of its
    two largest q (DeepSeek-V3) or its largest (V2); equal groups: the one with the smallest expert in the tie order."""
    t, e = q.shape
    grouped = q.reshape(t, router.n_group, e // router.n_group)
    best = grouped.topk(1 if router.topk_method == "group_limited_greedy" else min(2, grouped.shape[-1]), -1).values
    value = best[..., 0] + best[..., 1:].masked_fill(best[..., 1:] == -math.inf, 0).sum(-1)      # of one left: its own
    order = tie_order(position, e, router.top_k, router.tie_break == "rotate")
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(e).expand(t, e))
    first = rank.view_as(grouped).amin(-1)
    ranked = sorted_by(first, value)
    keep = torch.zeros_like(value, dtype=torch.bool).scatter(1, ranked[:, : router.topk_group], True)
    if router.topk_group < router.n_group:
        in_order = value.gather(1, ranked)
        watch((in_order[:, router.topk_group - 1] - in_order[:, router.topk_group]).min())
    return grouped.masked_fill(~keep[..., None], -math.inf).view(t, e)


def sorted_by(first, value):
    """[T, G] indices by descending value, then ascending first."""
    order = first.argsort(dim=1, stable=True)
    return order.gather(1, value.gather(1, order).argsort(dim=1, descending=True, stable=True))


def dropped_experts(u, p, router):
    """[E] bool: whole experts that sit a step out, u < p, but of each group the largest u stay, as many as let any
    topk_group groups serve top_k."""
    grouped = router.n_group > 1
    stay = math.ceil(router.top_k / router.topk_group) if grouped else router.top_k
    of_group = u.view(router.n_group if grouped else 1, -1)
    lucky = torch.zeros_like(of_group, dtype=torch.bool).scatter(1, of_group.topk(min(stay, of_group.shape[1]), 1).indices, True)
    return (u < p) & ~lucky.view(-1)


def select(router, q, position, experts):
    """[T, K] from the selection scores q, and q with the experts outside the kept groups at -inf."""
    if router.n_group > 1:
        q = torch.cat([mask_groups(router, q[:, :experts], position), q[:, experts:]], 1)
    if router.top_k < q.shape[1]:
        ranked = q.sort(1, descending=True).values
        watch((ranked[:, router.top_k - 1] - ranked[:, router.top_k]).min())
    return choose(q, router.top_k, position, router.tie_break == "rotate"), q


# ---------------------------------------------------------------- weights
def weights(router, scores, chosen):
    """[T, K]: the chosen scores, normalised over K, times the scaling factor."""
    w = scores.gather(1, chosen)
    if router.norm_topk_prob and router.top_k > 1:
        w = w / (w.sum(-1, keepdim=True) + 1e-20)
    return w * router.routed_scaling_factor


def by_token_id(config, ids, like):
    """Hash layers (Roller et al. 2021): e_tk = (id + k floor(E/K)) mod E, equal weights, no router."""
    e, k = config.moe.n_experts, config.router.top_k
    chosen = (ids[:, None] + torch.arange(k) * (e // k)) % e
    weight = torch.full(chosen.shape, config.router.routed_scaling_factor / k).to(like)
    return SimpleNamespace(chosen=chosen, weight=weight, logits=None, scores=None, probability=None, q=None)


def route(router, clean, position, bias=None, noise=None, dropped=None):
    """clean [T, E'] logits -> the experts chosen, their weights, scores, probabilities, and the selection scores q.
    noise [T, E'] moves the choice alone; dropped [E] experts are never chosen; columns beyond E are zero experts."""
    clipped = clean.clamp(-router.logit_clip, router.logit_clip) if router.logit_clip > 0 else clean
    scores = score(router, clipped)
    if router.force_balanced:
        t, k = torch.arange(len(clean))[:, None], torch.arange(router.top_k)
        chosen, q = (t * router.top_k + k) % clean.shape[1], None
    else:
        q = (scores if noise is None else score(router, clipped + noise)).detach()
        q = q if bias is None else q + bias
        experts = clean.shape[1] if dropped is None else len(dropped)
        if dropped is not None:
            q = torch.cat([q[:, :experts].masked_fill(dropped, -math.inf), q[:, experts:]], 1)
        chosen, q = select(router, q, position, experts)
    probability = scores / scores.sum(-1, keepdim=True) if router.score == "sigmoid" else clipped.softmax(-1)
    return SimpleNamespace(chosen=chosen, weight=weights(router, scores, chosen), logits=clean, scores=scores,
                           probability=probability, q=q)
