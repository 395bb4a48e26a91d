// The sparse layer's options: its experts, their capacity, and what stands beside them.
#pragma once

#include "config/config.h"
#include "config/constraint.h"

namespace switchyard {

template <class V>
void describe_experts(V& v, MoeConfig& c) {
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
  v.field("segments", c.segments, between(1, 1024),
          "Cut each expert into so many of an equal share of its width: n_experts and top_k become segments times as "
          "many, less n_shared_experts, at unchanged cost.",
          "E16; DeepSeekMoE, Dai et al. 2024");
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
void describe_capacity(V& v, MoeConfig& c) {
  v.field(
      "capacity_factor", c.capacity_factor, at_least(0),
      "Rows that an expert takes, as a multiple of its even share T * top_k / n_experts of a rank's micro-batch. 0: "
      "dropless, every expert takes what it is given.",
      "E6; Lepikhin et al. 2020 (GShard), Fedus et al. 2021");
  v.field("expert_capacity", c.expert_capacity, at_least(0),
          "The same as a number of rows, in place of capacity_factor, bounds and ramp; evaluation has "
          "eval_capacity_factor. 0: unset.",
          "E6");
  v.field("min_expert_capacity", c.min_expert_capacity, at_least(1), "Rows that an expert takes at least.", "E6");
  v.field("max_expert_capacity", c.max_expert_capacity, at_least(0),
          "Rows that an expert takes at most, where the ramp ends. 0: what capacity_factor gives.", "E6");
  v.field("capacity_ramp_steps", c.capacity_ramp_steps, at_least(0),
          "The upper bound grows from min_expert_capacity to max_expert_capacity over so many steps. 0: it is there "
          "from the start.",
          "E6");
  v.field("eval_capacity_factor", c.eval_capacity_factor, at_least(0),
          "capacity_factor of evaluation and generation. 0: nothing is dropped there.", "E6");
  v.field("drop_policy", c.drop_policy, one_of({"position", "weight", "importance"}),
          "Who keeps a place in a full expert. position: first choices before second ones, earlier tokens before later "
          "ones. weight: larger routing weights. importance: tokens of larger token_importance.",
          "E7; Lepikhin et al. 2020, Riquelme et al. 2021 (batch-prioritised routing)");
  v.field("overflow", c.overflow, one_of({"drop", "null_expert", "reroute"}),
          "What becomes of assignments without a place. drop: they add nothing, the residual stream carries the token. "
          "null_expert: that expert takes them. reroute: they ask the best other expert that has room.",
          "E8");
  v.field(
      "null_expert", c.null_expert, one_of({"zero", "copy", "constant", "ffn"}),
      "What the null expert gives for x. zero: nothing; copy: x; constant: a mix of x and a learned vector; ffn: one "
      "more expert without capacity.",
      "E8; Zeng et al. 2024 (AdaMoE), Jin et al. 2024 (MoE++)");
  v.field("reroute_rounds", c.reroute_rounds, between(1, 64), "Rounds of asking; what is left then is dropped.", "E8");
  v.field("renormalize_after_drop", c.renormalize_after_drop, any(),
          "Scale the weights that are left so that their sum is what it was.", "E8");
}

template <class V>
void describe(V& v, ZeroExpertsConfig& c) {
  v.field("zero", c.zero, between(0, 1024), "Experts that give 0.", "E10; Zeng et al. 2024 (AdaMoE)");
  v.field("copy", c.copy, between(0, 1024), "Experts that give their input.", "E10; Jin et al. 2024 (MoE++)");
  v.field("constant", c.constant, between(0, 1024), "Experts that give a mix of their input and a learned vector.",
          "E10; Jin et al. 2024 (MoE++)");
}

template <class V>
void describe_beside(V& v, MoeConfig& c) {
  v.field("token_importance", c.token_importance, one_of({"none", "norm", "learned"}),
          "A token's priority. norm: the length of its vector. learned: a linear map of it, which also multiplies its "
          "routing weights by 2 sigmoid(importance), 1 at the start.",
          "E9");
  v.group("zero_experts", c.zero_experts, "experts without products that the router may choose");
  v.field("zero_expert_tau", c.zero_expert_tau, at_least(0),
          "Factor on the zero experts' terms of the balance loss: below 1 lets tokens prefer them.",
          "E10; Jin et al. 2024 (MoE++)");
  v.field("flexible_ffn", c.flexible_ffn, any(),
          "A dense MLP of ffn_hidden beside the experts; a learned share a layer mixes the two.", "E11");
  v.field("combine_init", c.combine_init, any(), "Initial logit of the share of flexible_ffn: 0.5 gives 0.62.", "E11");
  v.field("warmup_steps", c.warmup_steps, at_least(0), "Steps over which the routed experts fade in. 0: none.", "E12");
  v.field(
      "warmup_mode", c.warmup_mode, one_of({"blend", "dense_average"}),
      "blend: the routed output is scaled by step / warmup_steps. dense_average: until then all experts run and are "
      "averaged, which costs as much as it sounds, and jumps at the end.",
      "E12");
  v.field("expert_dropout", c.expert_dropout, from_up_to(0, 1),
          "Probability with which a whole expert is left out of a layer for a step, for all tokens.", "E13");
  v.field("expert_hidden_dropout", c.expert_hidden_dropout, from_up_to(0, 1),
          "Share of the experts' hidden units zeroed in training, the rest scaled up.",
          "E13; Fedus et al. 2021 (expert dropout)");
}

template <class V>
void describe(V& v, MoeConfig& c) {
  describe_experts(v, c);
  describe_capacity(v, c);
  describe_beside(v, c);
}

}  // namespace switchyard
