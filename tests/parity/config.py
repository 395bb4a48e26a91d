"""Options as plain attributes: config.router.top_k. Read from a dump's config.json, or built here for the self test."""

import json
from types import SimpleNamespace

# The defaults of every option that the Python model or its optimizers read.
DEFAULTS = {
    "model": dict(n_layer=12, n_embd=768, head_dim=64, n_head=0, n_kv_head=0, seq_len=1024, vocab_size=32768,
                  mlp="relu2", ffn_hidden=0, norm_weight=False, norm_eps=1e-6, rope_theta=10000.0, qk_norm=True,
                  qk_norm_weight=False, window_pattern="L", value_embeds=True, value_gate_channels=32,
                  resid_scalars=True, logit_softcap=15.0, tie_head=False, embed_norm=True, dropout=0.0,
                  block="sequential",
                  inl=dict(enabled=False, mode="adaptive", shared=True, dt=0.1, beta_max=2.0, velocity_max=10.0,
                           init_alpha=0.9, init_beta=0.1, init_gate=0.5, controller_hidden=64, mu_min=0.0,
                           mu_max=0.0)),
    "moe": dict(use_moe=False, moe_freq=1, first_dense=0, n_experts=8, expert_hidden_mult=4, d_expert=0, segments=1,
                n_shared_experts=0, d_shared=0, capacity_factor=0.0, expert_capacity=0, min_expert_capacity=1,
                max_expert_capacity=0, capacity_ramp_steps=0, drop_policy="position", overflow="drop",
                null_expert="zero", reroute_rounds=1, renormalize_after_drop=False, token_importance="none",
                zero_experts=dict(zero=0, copy=0, constant=0), zero_expert_tau=1.0, flexible_ffn=False,
                warmup_steps=0, warmup_mode="blend", expert_dropout=0.0, expert_hidden_dropout=0.0),
    "router": dict(type="topk", top_k=2, score="softmax", norm_topk_prob=True, routed_scaling_factor=1.0,
                   tie_break="rotate", balance_loss="switch", balance_coef=0.01, balance_topk_normalize=False,
                   balance_scope="micro", z_loss_coef=0.0, topk_method="greedy", n_group=1, topk_group=1,
                   logit_clip=0.0, noise="none", noise_scale=1.0, aux_ramp_steps=0, aux_ramp_start=0.0, aux_ramp_end=1.0, seq_balance_coef=0.0,
                   bias_balancing=False, bias_update_rate=0.001, reset_interval=0, reset_noise=0.02, reset_until=0,
                   semantic=False, semantic_dim=0, force_balanced=False),
    "optim": dict(matrix_optimizer="muon", matrix_lr=0.004, router_optimizer="muon", clip_norm=0.0,
                  muon=dict(lr=0.02, momentum_start=0.85, momentum_end=0.95, momentum_warmup_steps=300, nesterov=True,
                            iterations=3, weight_decay=0.2, variance_reduction=False, beta2=0.95),
                  adamw=dict(embed_lr=0.3, value_embed_lr=0.15, head_lr=0.004, gate_lr=0.004, scalar_lr=0.005,
                             x0_lr=0.5, beta1=0.8, x0_beta1=0.96, beta2=0.95, eps=1e-10, weight_decay=0.0,
                             scale_lr_with_width=True),
                  schedule=dict(shape="linear", warmup_steps=0, warmdown_fraction=0.5, final_fraction=0.0)),
    "train": dict(steps=50, micro_batch=2, batch_tokens=0, seed=3),
}


def to_namespace(tree):
    if not isinstance(tree, dict):
        return tree
    return SimpleNamespace(**{key: to_namespace(value) for key, value in tree.items()})


def load(path):
    """A resolved config.json: every key present, derived values filled in."""
    with open(path) as file:
        return to_namespace(json.load(file))


def has(config, key):
    *groups, name = key.split(".")
    for group in groups:
        config = getattr(config, group, None)
    return hasattr(config, name)


def build(overrides=None):
    """The defaults with dotted overrides, {"router.top_k": 1}, and derived values filled in."""
    config = to_namespace(DEFAULTS)
    for key, value in (overrides or {}).items():
        *groups, name = key.split(".")
        place = config
        for group in groups:
            place = getattr(place, group)
        if not hasattr(place, name):
            raise KeyError(f"no option {key}")
        setattr(place, name, value)
    derive(config)
    return config


def derive(config):
    """Values of 0 that stand for others, and segments: each expert cut into m, of which each token takes m times as
    many, both less the shared experts."""
    model, moe, router, train = config.model, config.moe, config.router, config.train
    model.n_head = model.n_head or model.n_embd // model.head_dim
    model.n_kv_head = model.n_kv_head or model.n_head
    model.ffn_hidden = model.ffn_hidden or 4 * model.n_embd
    moe.d_expert = moe.d_expert or moe.expert_hidden_mult * model.n_embd
    if moe.segments > 1:
        moe.n_experts = moe.segments * moe.n_experts - moe.n_shared_experts
        router.top_k = moe.segments * router.top_k - moe.n_shared_experts
        moe.d_expert, moe.segments = moe.d_expert // moe.segments, 1
    moe.d_shared = moe.d_shared or moe.d_expert
    router.semantic_dim = router.semantic_dim or min(256, model.n_embd)
    train.batch_tokens = train.batch_tokens or train.micro_batch * model.seq_len
