"""The sparse layer and its losses: a loop over experts, the router in the dtype of its input."""

import contextlib

import torch

_gaps = None     # while watched: the smallest gap of each routing


@contextlib.contextmanager
def watched_gaps():
    """Yields a list that collects, for every routing inside, the smallest distance between a token's last chosen score
    and the best one not chosen. Below the scores' rounding error, rounding decides where that token goes."""
    global _gaps
    _gaps = []
    try:
        yield _gaps
    finally:
        _gaps = None


def shapes(config, d):
    m, e = config.moe, config.moe.n_experts
    rows = 2 if config.model.mlp in ("swiglu", "geglu") else 1
    out = {"moe.router.weight": (e, d), "moe.experts.up": (e, rows * m.d_expert, d), "moe.experts.down": (e, d, m.d_expert)}
    if m.n_shared_experts:
        width = m.n_shared_experts * m.d_shared
        out["moe.shared.up.weight"], out["moe.shared.down.weight"] = (rows * width, d), (d, width)
    return out


def choose(scores, top_k, position, rotate):
    """[T, K] experts of the largest scores. Ties in the order (e - position*K) mod E, or e."""
    e = scores.shape[-1]
    turn = position[:, None] * top_k if rotate else torch.zeros_like(position)[:, None]
    order = (torch.arange(e)[None, :] + turn) % e          # the expert at each rank of the tie order
    ranked = scores.gather(1, order).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, ranked[:, :top_k])


def route(router, logits, position):
    """Chosen experts [T, K], their weights [T, K] with the scaling factor, and the probabilities [T, E]."""
    softmax = logits.softmax(-1)
    scores = {"softmax": softmax, "sigmoid": logits.sigmoid(), "identity": logits}[router.score]
    chosen = choose(scores.detach(), router.top_k, position, router.tie_break == "rotate")
    if _gaps is not None and router.top_k < scores.shape[1]:
        ranked = scores.detach().sort(1, descending=True).values
        _gaps.append((ranked[:, router.top_k - 1] - ranked[:, router.top_k]).min().item())
    weight = scores.gather(1, chosen)
    if router.norm_topk_prob and router.top_k > 1:
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
    probability = scores / scores.sum(-1, keepdim=True) if router.score == "sigmoid" else softmax
    return chosen, weight * router.routed_scaling_factor, probability


def balance_loss(router, chosen, weight, probability):
    """Over the tokens given: [T, K], [T, K], [T, E]."""
    tokens, e = probability.shape
    p = probability.mean(0)
    if router.balance_loss == "switch":
        share = torch.bincount(chosen.flatten(), minlength=e).to(p) / tokens
        return e * (share * p).sum() / (router.top_k if router.balance_topk_normalize else 1)
    if router.balance_loss == "cv_squared":
        return e * (p - 1 / e).square().sum()
    if router.balance_loss == "cv_squared_topk":
        importance = torch.zeros_like(p).index_add(0, chosen.flatten(), weight.flatten())
        return importance.var(correction=0) / importance.mean().square()
    return p.new_zeros(())


def scoped_balance_loss(router, chosen, weight, probability, sequences):
    """A micro-batch as one, or each sequence and their mean. The sums of chosen weights know no sequences."""
    if router.balance_scope != "sequence" or router.balance_loss == "cv_squared_topk":
        return balance_loss(router, chosen, weight, probability)
    parts = zip(chosen.chunk(sequences), weight.chunk(sequences), probability.chunk(sequences))
    return torch.stack([balance_loss(router, *part) for part in parts]).mean()


def forward(config, p, n, mlp):
    """n [B, S, D] -> the layer's output and its weighted auxiliary loss; mlp(kind, x, up, down) is one expert."""
    router, kind = config.router, config.model.mlp
    b, s, d = n.shape
    x = n.reshape(b * s, d)
    logits = x @ p["moe.router.weight"].mT
    chosen, weight, probability = route(router, logits, torch.arange(s).repeat(b))
    y = torch.zeros_like(x)
    for expert in range(config.moe.n_experts):
        token, slot = (chosen == expert).nonzero(as_tuple=True)
        rows = mlp(kind, x[token], p["moe.experts.up"][expert], p["moe.experts.down"][expert])
        y = y.index_add(0, token, rows * weight[token, slot, None])
    if "moe.shared.up.weight" in p:
        y = y + mlp(kind, x, p["moe.shared.up.weight"], p["moe.shared.down.weight"])
    balance = scoped_balance_loss(router, chosen, weight, probability, b)
    z = logits.logsumexp(-1).square().mean()
    return y.view(b, s, d), router.balance_coef * balance + router.z_loss_coef * z
