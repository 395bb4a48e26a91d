"""The GPT of both families in plain PyTorch, written from the specification and sharing no code with the program.

A model is a dictionary of parameters, name -> tensor, in float32 or float64; gradients come from autograd.
Shapes: B sequences, S positions, T = B*S tokens, D width, H query heads, KV key/value heads, C channels of a head,
N hidden width, E experts, K experts a token, V vocabulary.
"""

import torch
import torch.nn.functional as F

import balance
import inl
import moe
import philox

GATED = ("swiglu", "geglu")


def has_value_embeds(config, layer):
    return config.model.value_embeds and layer % 2 == (config.model.n_layer - 1) % 2


def is_moe(config, layer):
    first = config.moe.first_dense
    return config.moe.use_moe and layer >= first and (layer - first) % config.moe.moe_freq == 0


def attention_window(config, layer):
    """How many positions a token sees, itself included."""
    m = config.model
    letter = "L" if layer == m.n_layer - 1 else m.window_pattern[layer % len(m.window_pattern)]
    return m.seq_len if letter == "L" else m.seq_len // 2


def up_rows(config, width):
    return 2 * width if config.model.mlp in GATED else width


# ---------------------------------------------------------------- parameters
def parameter_shapes(config):
    """name -> shape of every parameter, in the order of the model."""
    m = config.model
    d, v = m.n_embd, m.vocab_size
    shapes = {"embed.weight": (v, d)}
    for i in range(m.n_layer):
        if has_value_embeds(config, i):
            shapes[f"value_embed.{i}.weight"] = (v, m.n_kv_head * m.head_dim)
    for i in range(m.n_layer):
        for name, shape in block_shapes(config, i).items():
            shapes[f"blocks.{i}.{name}"] = shape
    if m.inl.enabled and m.inl.shared:
        shapes.update(inl.shapes(config))
    if m.norm_weight:
        shapes["final_norm.weight"] = (d,)
    if m.resid_scalars:
        shapes["resid.keep"] = shapes["resid.again"] = (m.n_layer,)
    if not m.tie_head:
        shapes["head.weight"] = (v, d)
    return shapes


def block_shapes(config, layer):
    m = config.model
    d, h, kv, c = m.n_embd, m.n_head, m.n_kv_head, m.head_dim
    shapes = {"attn.qkv.weight": ((h + 2 * kv) * c, d), "attn.out.weight": (d, h * c)}
    if has_value_embeds(config, layer):
        shapes["attn.value_gate.weight"] = (kv, m.value_gate_channels)
    if m.qk_norm_weight:
        shapes["attn.q_norm.weight"] = shapes["attn.k_norm.weight"] = (c,)
    if is_moe(config, layer):
        shapes.update(moe.shapes(config, d))
    else:
        shapes["mlp.up.weight"] = (up_rows(config, m.ffn_hidden), d)
        shapes["mlp.down.weight"] = (d, m.ffn_hidden)
    if m.norm_weight:
        shapes["attn_norm.weight"] = shapes["mlp_norm.weight"] = (d,)
    if m.inl.enabled and not m.inl.shared:
        shapes.update(inl.shapes(config))
    return shapes


# ---------------------------------------------------------------- layers
def rms_norm(x, eps, gain=None):
    x = x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    return x if gain is None else x * gain


def activate(kind, pre):
    """The hidden activation; the gated kinds read [.., 2N], gate first."""
    if kind == "relu2":
        return pre.clamp(min=0).square()
    if kind == "gelu":
        return F.gelu(pre)
    gate, value = pre.chunk(2, -1)
    return {"swiglu": F.silu, "geglu": F.gelu}[kind](gate) * value


def mlp(kind, x, up, down, mask=1):
    """mask multiplies hidden units."""
    return (activate(kind, x @ up.mT) * mask) @ down.mT


def rotate(x, theta):
    """Rotary embedding of [B, S, heads, C]: channel c turns with c + C/2, by minus the angle."""
    half = x.shape[-1] // 2
    position = torch.arange(x.shape[1], dtype=torch.float64)[:, None]
    angle = position * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angle.cos().to(x)[:, None], angle.sin().to(x)[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos + second * sin, second * cos - first * sin], -1)


def attention(config, layer, p, n, tokens, table):
    """n [B, S, D] is the block's normed input; table the value embeddings or None."""
    m = config.model
    b, s, _ = n.shape
    h, kv, c = m.n_head, m.n_kv_head, m.head_dim
    q, k, v = (n @ p["attn.qkv.weight"].mT).view(b, s, h + 2 * kv, c).split([h, kv, kv], 2)
    if m.qk_norm:
        q = rms_norm(q, m.norm_eps, p.get("attn.q_norm.weight"))
        k = rms_norm(k, m.norm_eps, p.get("attn.k_norm.weight"))
    q, k = rotate(q, m.rope_theta), rotate(k, m.rope_theta)
    if table is not None:
        gate = 2 * torch.sigmoid(n[..., : m.value_gate_channels] @ p["attn.value_gate.weight"].mT)
        v = v + gate[..., None] * table[tokens].view(b, s, kv, c)
    kv_head = torch.arange(h) * kv // h
    k, v = k[:, :, kv_head], v[:, :, kv_head]
    scores = torch.einsum("bihc,bjhc->bhij", q, k) / c**0.5
    distance = torch.arange(s)[:, None] - torch.arange(s)[None, :]
    visible = (distance >= 0) & (distance < attention_window(config, layer))
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("bhij,bjhc->bihc", weights, v).reshape(b, s, h * c) @ p["attn.out.weight"].mT


def feed_forward(config, layer, p, n, tokens, state):
    """The second half of a block, dense or sparse: its output and auxiliary loss."""
    if is_moe(config, layer):
        return moe.forward(config, p, n, tokens, mlp, state, layer)
    return mlp(config.model.mlp, n, p["mlp.up.weight"], p["mlp.down.weight"]), 0


def block(config, layer, p, x, tokens, table, state):
    m = config.model
    norm = lambda x, name: rms_norm(x, m.norm_eps, p.get(name))
    drop = lambda y, site: y * state.draws.keep(site, y.shape[-1], m.dropout).view_as(y).to(y) if m.dropout > 0 else y
    attended = drop(attention(config, layer, p, norm(x, "attn_norm.weight"), tokens, table), 2 * layer)
    before = x if m.block == "parallel" else x + attended
    y, auxiliary = feed_forward(config, layer, p, norm(before, "mlp_norm.weight"), tokens, state)
    return x + attended + drop(y, 2 * layer + 1), auxiliary


def forward(config, parameters, tokens, state=None, windows=None):
    """tokens [B, S] -> logits [B, S, V] after the soft cap, and the auxiliary loss with its coefficients.
    state: a balance.State; by default that of the first step. windows: the sequences' numbers, for random draws."""
    m, state = config.model, state or balance.State()
    windows = range(len(tokens)) if windows is None else windows
    state.draws = philox.Draws(config.train.seed, state.step, windows, tokens.shape[1])
    norm = lambda x, name: rms_norm(x, m.norm_eps, parameters.get(name))
    x = parameters["embed.weight"][tokens]
    if m.embed_norm:
        x = rms_norm(x, m.norm_eps)
    x0, velocity, auxiliary = x, torch.zeros_like(x), x.new_zeros(())
    for i in range(m.n_layer):
        p = {k.removeprefix(f"blocks.{i}."): w for k, w in parameters.items() if k.startswith(f"blocks.{i}.")}
        if m.resid_scalars:
            x = parameters["resid.keep"][i] * x + parameters["resid.again"][i] * x0
        x, layer_loss = block(config, i, p, x, tokens, parameters.get(f"value_embed.{i}.weight"), state)
        auxiliary = auxiliary + layer_loss
        if m.inl.enabled:
            x, velocity = inl.step(m.inl, parameters if m.inl.shared else p, x, velocity)
    head = parameters["embed.weight" if m.tie_head else "head.weight"]
    logits = norm(x, "final_norm.weight") @ head.mT
    if m.logit_softcap > 0:
        logits = m.logit_softcap * torch.tanh(logits / m.logit_softcap)
    return logits, auxiliary


def losses(config, parameters, tokens, targets, windows=None, state=None):
    """Mean cross entropy over targets that are not -1, the auxiliary loss, and the logits."""
    logits, auxiliary = forward(config, parameters, tokens, state, windows)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    return loss, auxiliary, logits


def gradients(config, parameters, micro_batches, state=None):
    """Gradients of the mean over micro-batches (tokens, targets[, windows]) of loss + auxiliary; also the mean loss."""
    leaves = {name: w.detach().requires_grad_() for name, w in parameters.items()}
    total = 0.0
    for micro_batch in micro_batches:
        loss, auxiliary, _ = losses(config, leaves, *micro_batch, state=state)
        ((loss + auxiliary) / len(micro_batches)).backward()
        total += loss.item() / len(micro_batches)
    zero = lambda w: torch.zeros_like(w) if w.grad is None else w.grad
    return {name: zero(w) for name, w in leaves.items()}, total
