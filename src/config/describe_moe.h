// The sparse layer's options: the experts (moe) and who goes where (router).
#pragma once

#include "config/config.h"
#include "config/constraint.h"

namespace switchyard {

template <class V>
void describe(V& v, MoeConfig& c) {
  v.field(
      "use_moe", c.use_moe, any(),
      "Replace dense MLPs by experts. false: the dense model, and every other moe and router key is without effect.",
      "E1");
  v.field("moe_freq", c.moe_freq, at_least(1),
          "Every so many-th layer from first_dense on is sparse: layer i if (i - first_dense) mod moe_freq = 0.", "E1");
  v.field("first_dense", c.first_dense, at_least(0), "So many layers at the start stay dense.",
          "E1; DeepSeekMoE, Dai et al. 2024");
  v.field("n_experts", c.n_experts, between(1, 65536),
          "Routed experts of a sparse layer. Total parameters grow with it; the cost of a token does not (router.top_k "
          "says that).",
          "E2; Shazeer et al. 2017");
  v.field("expert_hidden_mult", c.expert_hidden_mult, between(1, 1024),
          "An expert's hidden width as a multiple of n_embd. With top_k = 2, 2 costs the same FLOPs as the dense MLP's "
          "4. Give this or d_expert.",
          "E2");
  v.field("d_expert", c.d_expert, between(0, 16777216), "An expert's hidden width N. 0: expert_hidden_mult * n_embd.",
          "E2; DeepSeekMoE, Dai et al. 2024 (fine-grained experts)");
  v.field("backend", c.backend, one_of({"auto", "cuda", "cpu", "reference"}),
          "Who computes the experts. auto: CUDA kernels for tensors on a GPU, the vectorised CPU path otherwise. "
          "reference: a plain loop over experts, slow and obvious, which the others are tested against. Same "
          "mathematics, other rounding.",
          "E3; Gale et al. 2022 (MegaBlocks), Tan et al. 2024 (ScatterMoE)");
  v.field("n_shared_experts", c.n_shared_experts, between(0, 1024),
          "Experts that every token passes, their output added to the routed sum; counted as active.",
          "E5; DeepSeekMoE, Dai et al. 2024");
  v.field("d_shared", c.d_shared, between(0, 16777216), "Hidden width of one shared expert. 0: that of a routed one.",
          "E5");
  v.field("init", c.init, one_of({"uniform", "normal"}),
          "Initial values of experts. uniform: first matrices with bound sqrt(3 / n_embd), output matrices 0, as the "
          "dense MLP of model.init = nanochat. normal: N(0, init_std^2).",
          "E14");
  v.field("init_std", c.init_std, positive(), "Standard deviation of init = normal; nothing else reads it.", "E14");
  v.field("aux_injection", c.aux_injection, one_of({"sum", "autograd"}),
          "How balance losses reach the gradient. sum: added to the loss. autograd: a node on the layer's output whose "
          "backward adds them. The gradients are the same.",
          "E15; DeepSeek-V2, 2024");
}

template <class V>
void describe_scores(V& v, RouterConfig& c) {
  v.field("type", c.type, one_of({"topk"}),
          "How experts are chosen. topk: the top_k highest scores of a learned linear map.", "R1; Shazeer et al. 2017");
  v.field("top_k", c.top_k, between(1, 65536),
          "Experts that process each token, 1 to moe.n_experts. A token's cost grows with it; 1 is cheaper and less "
          "stable.",
          "R2");
  v.field("score", c.score, one_of({"softmax", "sigmoid", "identity"}),
          "How a logit becomes a routing score: softmax over all experts, a sigmoid each, or the logit itself. The "
          "weights of a token's experts are their scores.",
          "R2; Fedus et al. 2021 (softmax), DeepSeek-V3, 2024 (sigmoid)");
  v.field("norm_topk_prob", c.norm_topk_prob, any(),
          "Divide a token's weights by their sum. Skipped for top_k = 1, where it would cut the router off from the "
          "loss. Not with score = identity, whose sum may be 0 or less: there an untouched true yields to false.",
          "R2");
  v.field("routed_scaling_factor", c.routed_scaling_factor, positive(), "Multiplies the weights after norm_topk_prob.",
          "R2; DeepSeek-V2, 2024");
  v.field("dtype", c.dtype, one_of({"fp32"}),
          "Precision of router weights, logits and scores. Lower ones bring ties and drift.", "R4; Fedus et al. 2021");
  v.field("init", c.init, one_of({"zeros", "normal", "orthogonal"}),
          "Initial values of the router. zeros: all experts tie, and tie_break decides. normal: N(0, init_std^2). "
          "orthogonal: rows orthonormal, divided by sqrt(n_embd).",
          "R6");
  v.field("init_std", c.init_std, positive(), "Standard deviation of init = normal; nothing else reads it.", "R6");
  v.field(
      "tie_break", c.tie_break, one_of({"rotate", "lowest_index"}),
      "Order of experts whose scores are exactly equal. rotate: by (e - position * top_k) mod n_experts, so that a "
      "router of zeros loads all experts equally. lowest_index: by e, so that it sends everything to the first top_k.",
      "R6");
}

template <class V>
void describe_balance(V& v, RouterConfig& c) {
  v.field("balance_loss", c.balance_loss, one_of({"switch", "cv_squared", "cv_squared_topk", "none"}),
          "What keeps experts evenly loaded. With P the mean routing probability of an expert and f its share of "
          "tokens: switch: E sum f P, top_k when uniform. cv_squared: squared coefficient of variation of P. "
          "cv_squared_topk: of the summed weights of the chosen only. Summed over layers.",
          "R8; Fedus et al. 2021 (switch), Shazeer et al. 2017 (importance)");
  v.field("balance_coef", c.balance_coef, at_least(0),
          "Weight of the balance loss in the total. 0: measured, without effect.", "R8");
  v.field("balance_topk_normalize", c.balance_topk_normalize, any(),
          "Divide the switch loss by top_k: 1 when uniform, as Megatron-LM reports it.", "R8");
  v.field("balance_scope", c.balance_scope, one_of({"micro", "sequence", "global"}),
          "Over which tokens f and P are taken: a micro-batch of one rank, each sequence (then their mean), or f over "
          "all ranks' micro-batches, which leaves experts freer to specialise.",
          "R8; Dai et al. 2024 (sequence), Qiu et al. 2025 (global)");
  v.field(
      "z_loss_coef", c.z_loss_coef, at_least(0),
      "Weight of the mean squared log-sum-exp of the router's logits, which keeps them small; 0.001 is usual. 0: off.",
      "R10; Zoph et al. 2022 (ST-MoE)");
}

template <class V>
void describe(V& v, RouterConfig& c) {
  describe_scores(v, c);
  describe_balance(v, c);
}

}  // namespace switchyard
