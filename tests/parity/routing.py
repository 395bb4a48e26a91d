"""From a token to its experts: logits, scores, the choice, the weights. Everything in the dtype of the input.

Shapes: T tokens of one micro-batch, E columns of the router (zero experts included), K experts a token.
"""

import contextlib
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
    projected = x @ p["moe.router.project"].mT + p["moe.router.project_bias"]
    kappa = p["moe.router.scale"].exp().clamp(max=100)
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
    grouped = q.view(t, router.n_group, e // router.n_group)
    best = 1 if router.topk_method == "group_limited_greedy" else min(2, grouped.shape[-1])
    value = grouped.topk(best, -1).values.sum(-1)
    order = tie_order(position, e, router.top_k, router.tie_break == "rotate")
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(e).expand(t, e))
    first = rank.view_as(grouped).amin(-1)
    ranked = sorted_by(first, value)
    keep = torch.zeros_like(value, dtype=torch.bool).scatter(1, ranked[:, : router.topk_group], True)
    if router.topk_group < router.n_group:
        in_order = value.gather(1, ranked)
        watch((in_order[:, router.topk_group - 1] - in_order[:, router.topk_group]).min())
    return grouped.masked_fill(~keep[..., None], float("-inf")).view(t, e)


def sorted_by(first, value):
    """[T, G] indices by descending value, then ascending first."""
    order = first.argsort(dim=1, stable=True)
    return order.gather(1, value.gather(1, order).argsort(dim=1, descending=True, stable=True))


def select(router, q, position):
    """[T, K] from the selection scores q."""
    if router.topk_method != "greedy" and router.n_group > 1:
        q = mask_groups(router, q, position)
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


def route(router, clean, position, bias=None):
    """clean [T, E] logits -> the experts chosen, their weights, scores, probabilities, and the selection scores q."""
    clipped = clean.clamp(-router.logit_clip, router.logit_clip) if router.logit_clip > 0 else clean
    scores = score(router, clipped)
    q = scores.detach() if bias is None else scores.detach() + bias
    if router.force_balanced:
        t, k, e = *torch.meshgrid(position, torch.arange(router.top_k), indexing="ij"), clean.shape[1]
        chosen = (t * router.top_k + k) % e
    else:
        chosen, q = select(router, q, position)
    probability = scores / scores.sum(-1, keepdim=True) if router.score == "sigmoid" else clipped.softmax(-1)
    return SimpleNamespace(chosen=chosen, weight=weights(router, scores, chosen), logits=clean, scores=scores,
                           probability=probability, q=q)
