"""The configurations compared: what every case shares, and the keys that make each one different."""

# Small, yet nearly every dimension differs from every other, so that a transposed or mistaken size cannot pass.
# Rates are milder than the defaults, experts few and narrow: a curve must not hang on rounding. Two things amplify it:
# a token whose K-th and next score nearly tie goes to another expert, and Muon raises the directions in which the
# gradient of an expert with fewer tokens than columns is nothing but rounding. The seed is one with which no choice of
# the long cases is nearer than 5e-6 (compare.py --gaps).
BASE = {
    "device": "cpu", "precision.mode": "fp32",
    "model.n_layer": 4, "model.n_embd": 48, "model.head_dim": 16, "model.seq_len": 32, "model.vocab_size": 272,
    "model.value_gate_channels": 12, "model.ffn_hidden": 80,
    "router.balance_coef": 0.05,
    "optim.muon.momentum_warmup_steps": 30, "optim.muon.lr": 0.003,
    "optim.adamw.embed_lr": 0.003, "optim.adamw.value_embed_lr": 0.003, "optim.adamw.head_lr": 0.001,
    "optim.adamw.x0_lr": 0.01, "optim.adamw.eps": 1e-8,
    "train.steps": 10, "train.micro_batch": 2, "train.batch_tokens": 128, "train.seed": 3,
}

LONG = {"train.steps": 50}        # the cases that stand for a family; the others check ten steps
MOE = {"model.n_layer": 2, "moe.use_moe": True, "moe.n_experts": 6, "moe.d_expert": 24}
SIGMOID = {**MOE, "router.score": "sigmoid", "moe.n_shared_experts": 2, "moe.d_shared": 20, "router.routed_scaling_factor": 1.7}
LLAMA = {"model.mlp": "swiglu", "model.norm_weight": True, "model.norm_eps": 1e-3, "model.head_dim": 8, "model.n_head": 6,
         "model.n_kv_head": 2, "model.value_embeds": False, "model.resid_scalars": False, "model.logit_softcap": 0.0,
         "model.embed_norm": False, "model.qk_norm": False, "model.init": "llama", "model.rope_theta": 5e5,
         "optim.muon.lr": 0.002, "optim.adamw.embed_lr": 0.0005}    # small: embeddings are a tenth of nanochat's
MIXTRAL = {**LLAMA, **MOE}
QWEN = {**MIXTRAL, "model.qk_norm": True, "model.qk_norm_weight": True, "router.z_loss_coef": 0.001}

CASES = {
    "dense": LONG,
    "dense, window SL": {"model.window_pattern": "SL"},
    "dense, window SSL, 3 layers": {"model.window_pattern": "SSL", "model.n_layer": 3},
    "dense, tied head": {"model.tie_head": True},
    "dense, GQA, value embeddings": {"model.head_dim": 8, "model.n_head": 6, "model.n_kv_head": 3},
    "dense, gelu": {"model.mlp": "gelu", "model.norm_eps": 1e-2, "model.logit_softcap": 0.0},
    "dense, geglu": {"model.mlp": "geglu", "model.qk_norm": False},
    "dense, no scalars": {"model.resid_scalars": False, "model.value_embeds": False},
    "dense, heads wider than D": {"model.n_head": 5, "model.n_kv_head": 5, "model.seq_len": 24, "train.batch_tokens": 96},
    "MoE softmax": {**MOE, **LONG},
    "MoE softmax, zero router": {**MOE, "zero_router": True, "router.init": "zeros"},
    "MoE softmax, idle experts": {**MOE, "zero_router": True, "router.tie_break": "lowest_index",
                                  "train.steps": 1},      # the idle ones go on tying, up to rounding
    "MoE softmax, top 1": {**MOE, "router.top_k": 1},
    "MoE softmax, all experts": {**MOE, "moe.n_experts": 4, "router.top_k": 4},
    "MoE softmax, not normalised": {**MOE, "router.norm_topk_prob": False, "router.routed_scaling_factor": 2.5},
    "MoE every other layer": {**MOE, "model.n_layer": 4, "moe.moe_freq": 2, "moe.first_dense": 1, "model.mlp": "geglu"},
    "MoE sigmoid + shared": {**SIGMOID, **LONG},
    "MoE sigmoid, not normalised": {**SIGMOID, "router.norm_topk_prob": False},
    "MoE identity": {**MOE, "router.score": "identity", "router.norm_topk_prob": False},
    "MoE switch by K, sequence": {**MOE, "router.balance_scope": "sequence", "router.balance_topk_normalize": True},
    "MoE sigmoid, sequence": {**SIGMOID, "router.balance_scope": "sequence"},
    "MoE cv_squared": {**MOE, "router.balance_loss": "cv_squared"},
    "MoE cv_squared, sequence": {**MOE, "router.balance_loss": "cv_squared", "router.balance_scope": "sequence"},
    "MoE cv_squared_topk": {**MOE, "router.balance_loss": "cv_squared_topk", "router.top_k": 3},
    "MoE no balance, z-loss": {**MOE, "router.balance_loss": "none", "router.z_loss_coef": 0.01},
    "MoE aux by autograd": {**MOE, "moe.aux_injection": "autograd", "router.z_loss_coef": 0.01},
    "MoE reference backend": {**MOE, "moe.backend": "reference"},
    "Llama dense": {**LLAMA, **LONG},
    "Llama MoE (Mixtral)": {**MIXTRAL, **LONG},
    "Llama MoE (Qwen3)": {**QWEN, **LONG},
    "NorMuon": {**MOE, **LONG, "optim.muon.beta2": 0.8, "optim.muon.variance_reduction": True},
    "Muon plain momentum, clip": {"optim.muon.nesterov": False, "optim.muon.iterations": 7, "optim.clip_norm": 0.3},
    "AdamW matrices, decay": {**MOE, "optim.matrix_optimizer": "adamw", "optim.adamw.weight_decay": 0.1},
    "AdamW router, cosine": {**MOE, "optim.router_optimizer": "adamw", "optim.schedule.shape": "cosine",
                             "optim.schedule.warmup_steps": 3, "optim.schedule.final_fraction": 0.1},
    "warm-up, warm-down": {**LONG, "optim.schedule.warmup_steps": 10, "optim.schedule.warmdown_fraction": 0.3,
                           "optim.schedule.final_fraction": 0.2, "optim.adamw.scale_lr_with_width": False},
}

# Each routing feature alone, then together as the presets have them. Five steps: schedules end within three or four.
# A seed of its own: with the common one a choice nearly ties, or a scalar's gradient is a sum that nearly cancels.
FEATURE = {**MOE, "train.steps": 5}
SIGMOID_BIAS = {**FEATURE, "router.score": "sigmoid", "router.bias_balancing": True, "router.bias_update_rate": 0.03,
                "router.topk_method": "noaux_tc"}
GROUPS = {**FEATURE, "moe.n_experts": 8, "router.n_group": 4, "router.topk_group": 2}
INL = {**FEATURE, "model.inl.enabled": True, "model.inl.beta_max": 0.12}       # near the initial 0.1, so that it binds
TIGHT = {**FEATURE, "moe.capacity_factor": 0.75}       # 16 rows an expert where 21 are expected
NULL = {**TIGHT, "moe.overflow": "null_expert"}
REROUTE = {**TIGHT, "moe.overflow": "reroute"}
WARM = {**FEATURE, "moe.warmup_steps": 3, "at_step": 1}
SEMANTIC = {**FEATURE, "router.semantic": True, "router.semantic_dim": 10}
BALANCE_OFF = {"router.balance_loss": "none", "router.balance_coef": 0.0}

CASES |= {
    "block parallel": {**FEATURE, "model.block": "parallel"},
    "block parallel, Llama": {**LLAMA, "model.n_layer": 2, "train.steps": 5, "model.block": "parallel"},
    "INL": {**INL, "train.seed": 5},
    "INL a layer, bounded mean": {**INL, "model.inl.shared": False, "model.inl.mu_min": -0.05, "model.inl.mu_max": 0.08},
    "INL lite": {**INL, "model.inl.mode": "lite", "model.inl.velocity_max": 0.15, "model.block": "parallel",
                 "train.seed": 4},
    "segments": {**FEATURE, "moe.n_experts": 4, "moe.segments": 2, "moe.n_shared_experts": 1},
    "capacity, position": TIGHT,
    "capacity, weight": {**TIGHT, "moe.drop_policy": "weight"},
    "capacity, norm": {**TIGHT, "moe.drop_policy": "importance", "moe.token_importance": "norm", "model.norm_weight": True},
    "capacity, learned importance": {**TIGHT, "moe.drop_policy": "importance", "moe.token_importance": "learned"},
    "capacity, renormalised": {**TIGHT, "moe.renormalize_after_drop": True, "router.norm_topk_prob": False},
    "capacity, ramp": {**TIGHT, "moe.capacity_ramp_steps": 4, "moe.min_expert_capacity": 5, "moe.max_expert_capacity": 40,
                       "moe.capacity_factor": 1.25, "at_step": 2},
    "capacity, rows": {**FEATURE, "moe.expert_capacity": 11, "moe.n_shared_experts": 1},
    "capacity, reference backend": {**TIGHT, "moe.backend": "reference"},
    "null zero": NULL,
    "null copy": {**NULL, "moe.null_expert": "copy", "moe.drop_policy": "weight"},
    "null constant": {**NULL, "moe.null_expert": "constant"},
    "null ffn": {**NULL, "moe.null_expert": "ffn"},
    "null ffn, swiglu": {**LLAMA, **NULL, "moe.null_expert": "ffn"},
    "reroute": REROUTE,
    "reroute, 3 rounds, weight": {**REROUTE, "moe.capacity_factor": 1.0, "moe.reroute_rounds": 3,
                                  "moe.drop_policy": "weight", "router.top_k": 3},
    "reroute, sigmoid, importance": {**REROUTE, "router.score": "sigmoid", "moe.drop_policy": "importance",
                                     "moe.token_importance": "learned", "moe.renormalize_after_drop": True},
    "importance learned": {**FEATURE, "moe.token_importance": "learned"},
    "zero experts": {**FEATURE, "moe.zero_experts.zero": 1, "moe.zero_experts.copy": 1, "moe.zero_experts.constant": 2,
                     "moe.zero_expert_tau": 0.4, "router.top_k": 3},
    "zero experts, capacity": {**TIGHT, "moe.zero_experts.copy": 2, "router.score": "sigmoid", "router.seq_balance_coef": 0.03},
    "flexible": {**FEATURE, "moe.flexible_ffn": True, "moe.n_shared_experts": 1, "train.seed": 7},
    "warm-up": {**WARM, "moe.n_shared_experts": 1},
    "warm-up, flexible": {**WARM, "moe.flexible_ffn": True, "train.seed": 6},
    "warm-up, dense average": {**WARM, "moe.n_shared_experts": 1, "moe.warmup_mode": "dense_average"},
    "warm-up, dense average, flexible": {**WARM, "moe.flexible_ffn": True, "moe.warmup_mode": "dense_average"},
    "token id": {**FEATURE, **BALANCE_OFF, "router.type": "token_id", "router.routed_scaling_factor": 1.6},
    "token id, capacity": {**TIGHT, **BALANCE_OFF, "router.type": "token_id"},
    "groups, largest": {**GROUPS, "router.topk_method": "group_limited_greedy"},
    "groups, two largest, bias": {**GROUPS, **SIGMOID_BIAS, "moe.n_experts": 12, "router.top_k": 4},
    "bias": {**SIGMOID_BIAS, **BALANCE_OFF, "train.seed": 6},
    "bias, softmax": {**SIGMOID_BIAS, "router.score": "softmax"},
    "logit clip": {**FEATURE, "router.logit_clip": 0.8, "router.z_loss_coef": 0.02},
    "semantic": SEMANTIC,
    "semantic, sigmoid, AdamW": {**SEMANTIC, "router.score": "sigmoid", "optim.router_optimizer": "adamw"},
    "force balanced": {**FEATURE, "moe.n_experts": 8, "router.force_balanced": True},
    "aux ramp": {**FEATURE, "router.aux_ramp_steps": 4, "router.aux_ramp_start": 1.0, "router.aux_ramp_end": 5.0, "at_step": 3},
    "sequence term": {**FEATURE, "router.seq_balance_coef": 0.2, "router.score": "sigmoid"},
    "sequence term, by autograd": {**FEATURE, "router.seq_balance_coef": 0.2, "moe.aux_injection": "autograd", "router.aux_ramp_steps": 4,
                                   "router.balance_scope": "global", "at_step": 2},
    "gumbel": {**FEATURE, "router.noise": "gumbel", "router.noise_scale": 0.5, "at_step": 2},
    "gaussian, bias": {**SIGMOID_BIAS, "router.noise": "gaussian"},
    "jitter": {**FEATURE, "router.noise": "jitter", "router.noise_scale": 0.1, "at_step": 2},
    "expert dropout": {**FEATURE, "moe.expert_dropout": 0.4, "at_step": 2},
    "expert dropout, groups": {**GROUPS, "router.topk_method": "noaux_tc", "moe.expert_dropout": 0.5, "router.top_k": 3},
    "hidden dropout": {**FEATURE, "moe.expert_hidden_dropout": 0.3, "at_step": 2},
    "hidden dropout, swiglu, capacity": {**LLAMA, **TIGHT, "moe.expert_hidden_dropout": 0.3},
    "dropout": {**FEATURE, "model.dropout": 0.2, "at_step": 2},
    "reset": {**FEATURE, "router.reset_interval": 2, "router.reset_until": 3, "router.init": "normal", "router.init_std": 0.1},
    "reset, semantic, bias": {**SIGMOID_BIAS, **SEMANTIC, "router.reset_interval": 2, "router.reset_noise": 0.05},
    "all: DeepSeek style": {
        **LLAMA, **GROUPS, **SIGMOID_BIAS, "model.n_layer": 3, "moe.first_dense": 1, "moe.n_experts": 8, "router.n_group": 4,
        "moe.n_shared_experts": 1, "router.top_k": 3, "router.routed_scaling_factor": 2.5, "router.seq_balance_coef": 0.01},
    "all: MoE Transformer": {
        **LLAMA, **GROUPS, "router.topk_method": "noaux_tc", "router.n_group": 2, "router.bias_balancing": True,
        "router.bias_update_rate": 0.02, "router.aux_ramp_steps": 3, "router.aux_ramp_start": 1.0, "router.aux_ramp_end": 5.0,
        "moe.warmup_steps": 3, "moe.capacity_factor": 1.0, "moe.overflow": "null_expert", "moe.n_shared_experts": 1,
        "moe.token_importance": "learned", "moe.drop_policy": "importance", "moe.flexible_ffn": True, "at_step": 2},
    "all: tiny_002": {
        **REROUTE, "router.noise": "gumbel", "moe.expert_dropout": 0.1, "moe.n_experts": 8, "moe.n_shared_experts": 1,
        "moe.capacity_factor": 1.0, "moe.aux_injection": "autograd"},
    "all: tiny_003": {
        **GROUPS, "router.n_group": 2, "router.topk_group": 1, "router.topk_method": "noaux_tc", "router.bias_balancing": True,
        "moe.capacity_factor": 1.0, "moe.overflow": "null_expert", "moe.null_expert": "copy", "moe.token_importance": "learned",
        "moe.flexible_ffn": True, "moe.warmup_steps": 3, "router.aux_ramp_steps": 3, "router.semantic": True,
        "at_step": 2, "train.seed": 5},
    "all: tiny_004": {**LLAMA, **INL, "moe.n_experts": 4, "router.top_k": 1, "moe.expert_capacity": 14},
}


def options_of(name):
    """(dotted key -> value for the program, extra flags of parity_dump)."""
    keys = {**BASE, **CASES[name]}
    flags = ["--zero_router"] if keys.pop("zero_router", False) else []
    step = keys.pop("at_step", 0)
    return keys, flags + (["--at_step", str(step)] if step else [])
