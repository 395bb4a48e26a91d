"""The sparse layer: routing, capacity, a loop over experts, and what joins their sum (specification 2.9)."""

import torch

import balance
import capacity
import philox
import routing


def shapes(config, d):
    """name -> shape of a layer's parameters."""
    m, r, z, kind = config.moe, config.router, config.moe.zero_experts, config.model.mlp
    rows = 2 if kind in ("swiglu", "geglu") else 1
    stack = m.n_experts + (m.overflow == "null_expert" and m.null_expert == "ffn")
    width = r.semantic_dim if r.semantic else d
    out = {"moe.experts.up": (stack, rows * m.d_expert, d), "moe.experts.down": (stack, d, m.d_expert)}
    if r.type == "topk":
        out["moe.router.weight"] = (routing.columns(m), width)
    if r.semantic:
        out["moe.router.semantic.weight"], out["moe.router.semantic.bias"] = (width, d), (width,)
        out["moe.router.semantic.log_scale"] = (1,)
    if m.token_importance == "learned":
        out["moe.importance.weight"], out["moe.importance.bias"] = (d,), (1,)
    if m.overflow == "null_expert" and m.null_expert == "constant":
        out["moe.null.weight"], out["moe.null.value"] = (2, d), (d,)
    for j in range(z.constant):
        out[f"moe.zero.{j}.weight"], out[f"moe.zero.{j}.value"] = (2, d), (d,)
    if m.n_shared_experts:
        width = m.n_shared_experts * m.d_shared
        out["moe.shared.up.weight"], out["moe.shared.down.weight"] = (rows * width, d), (d, width)
    if m.flexible_ffn:
        width = config.model.ffn_hidden
        out["moe.dense.up.weight"], out["moe.dense.down.weight"] = (rows * width, d), (d, width)
        out["moe.mix"] = (1,)
    return out


# ---------------------------------------------------------------- experts without products
def constant(p, name, x):
    """a1 x + a2 v with (a1, a2) = softmax(W x)."""
    share = (x @ p[f"{name}.weight"].mT).softmax(-1)
    return share[:, :1] * x + share[:, 1:] * p[f"{name}.value"]


def null_output(config, p, x, expert):
    """Z(x) of assignments without a place."""
    kind = config.moe.null_expert
    if kind == "constant":
        return constant(p, "moe.null", x)
    if kind == "ffn":
        return expert(config.moe.n_experts, x)
    return x if kind == "copy" else torch.zeros_like(x)


def zero_output(config, p, x, column):
    """The zero expert of a router column: E.. are zero, then copy, then constant."""
    z, j = config.moe.zero_experts, column - config.moe.n_experts
    if j < z.zero:
        return torch.zeros_like(x)
    return x if j < z.zero + z.copy else constant(p, f"moe.zero.{j - z.zero - z.copy}", x)


# ---------------------------------------------------------------- the layer
def importance_of(config, p, x):
    if config.moe.token_importance == "learned":
        return x @ p["moe.importance.weight"] + p["moe.importance.bias"]
    return x.norm(dim=-1) if config.moe.token_importance == "norm" else None


def settle(config, choice, importance, step):
    """After capacity, all [T, K]: final experts, their weights, which assignments have a place, and the weights of those
    that go to the null expert."""
    m, router = config.moe, config.router
    factor = 2 * torch.sigmoid(importance)[:, None] if m.token_importance == "learned" else 1
    chosen, weight = choice.chosen, choice.weight * factor
    nothing = torch.zeros_like(weight)
    limit = capacity.at_step(m, router.top_k, len(chosen), step)
    if limit is None:
        return chosen, weight, torch.ones_like(chosen, dtype=torch.bool), nothing
    priority = capacity.priorities(m.drop_policy, weight, importance)
    keep = capacity.place(chosen, priority, limit, m.n_experts)
    if m.overflow == "null_expert":
        return chosen, weight, keep, weight * ~keep
    if m.overflow == "reroute":
        q = choice.q[:, : m.n_experts]
        chosen, keep = capacity.reroute(chosen, keep, q, priority, limit, m.reroute_rounds)
        weight = routing.weights(router, choice.scores, chosen) * factor
    return chosen, capacity.survivors_weight(weight, keep) if m.renormalize_after_drop else weight, keep, nothing


def routed_sum(config, p, x, settled, expert, hidden):
    """sum_k weight A(x) over kept assignments + sum_k weight Z(x) over those that overflowed. hidden [T, K, N] multiplies
    hidden units."""
    chosen, weight, keep, overflow = settled
    y = overflow.sum(-1, keepdim=True) * null_output(config, p, x, expert)
    for column in range(routing.columns(config.moe)):
        token, slot = ((chosen == column) & keep).nonzero(as_tuple=True)
        if column < config.moe.n_experts:
            rows = expert(column, x[token], 1 if hidden is None else hidden[token, slot])
        else:
            rows = zero_output(config, p, x[token], column)
        y = y.index_add(0, token, rows * weight[token, slot, None])
    return y


def warm_up(moe, step):
    return min(1.0, step / moe.warmup_steps) if moe.warmup_steps else 1.0


def choose(config, p, x, ids, sequences, state, layer):
    m, router, e = config.moe, config.router, routing.columns(config.moe)
    if router.type == "token_id":
        return routing.by_token_id(config, ids.reshape(-1), x)
    noise, dropped, read = None, torch.zeros(m.n_experts, dtype=torch.bool), x
    if router.noise in ("gumbel", "gaussian"):
        noise = router.noise_scale * getattr(state.draws, router.noise)(philox.NOISE + layer, e).to(x)
    if router.noise == "jitter":
        u = state.draws.open_uniform(philox.JITTER + layer, x.shape[1]).to(x)
        read = x * (1 + router.noise_scale * (2 * u - 1))
    if m.expert_dropout > 0:
        u = state.draws.shared_uniform(philox.EXPERTS + layer, m.n_experts)
        dropped = routing.dropped_experts(u, m.expert_dropout, router)
    position = torch.arange(len(x) // sequences).repeat(sequences)
    logits = routing.logits(router, p, read)
    return routing.route(router, logits, position, state.bias.get(layer), noise, dropped)


def forward(config, p, n, ids, mlp, state, layer):
    """n [B, S, D], ids [B, S] -> the layer's output and its weighted auxiliary loss; mlp(kind, x, up, down) is one
    expert. state: a balance.State, whose counts grow."""
    m, b, x = config.moe, len(n), n.flatten(0, 1)
    run = lambda rows, up, down: mlp(config.model.mlp, rows, p[f"moe.{up}"], p[f"moe.{down}"])
    expert = lambda i, rows, mask=1: mlp(config.model.mlp, rows, p["moe.experts.up"][i], p["moe.experts.down"][i], mask)
    choice = choose(config, p, x, ids, b, state, layer)
    state.count(layer, choice.chosen, routing.columns(m))
    shared = run(x, "shared.up.weight", "shared.down.weight") if m.n_shared_experts else 0
    done, share = warm_up(m, state.step), 1
    if done < 1 and m.warmup_mode == "dense_average":
        y = (1 - done) * shared + done * sum(expert(i, x) for i in range(m.n_experts)) / m.n_experts
    else:
        hidden = None
        if m.expert_hidden_dropout > 0:
            hidden = state.draws.keep_hidden(philox.HIDDEN + layer, m.d_expert, m.expert_hidden_dropout, config.router.top_k).to(x)
        settled = settle(config, choice, importance_of(config, p, x), state.step)
        routed = routed_sum(config, p, x, settled, expert, hidden)
        share = done if m.flexible_ffn else 1
        y = (1 if m.flexible_ffn else done) * routed + shared
    if m.flexible_ffn:
        share = share * torch.sigmoid(p["moe.mix"])
        y = share * y + (1 - share) * run(x, "dense.up.weight", "dense.down.weight")
    return y.view_as(n), balance.auxiliary(config, choice, b, state.step)
