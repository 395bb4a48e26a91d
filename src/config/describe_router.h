// The router's options: scores, selection, and what keeps experts evenly loaded.
#pragma once

#include "config/config.h"
#include "config/constraint.h"

namespace switchyard {

template <class V>
void describe_scores(V& v, RouterConfig& c) {
  v.field("type", c.type, one_of({"topk", "token_id"}),
          "How experts are chosen. topk: the top_k highest scores of a learned linear map. token_id: by the token's "
          "number, without parameters and with equal weights.",
          "R1; Shazeer et al. 2017, Roller et al. 2021 (hash layers)");
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
  v.field(
      "seq_balance_coef", c.seq_balance_coef, at_least(0),
      "Weight of a second balance loss, taken over each sequence and averaged; 0.0001 is usual beside bias_balancing. "
      "0: off.",
      "R11; DeepSeek-V3, 2024");
  v.field("aux_ramp_steps", c.aux_ramp_steps, at_least(0),
          "balance_coef is multiplied by a factor that goes from aux_ramp_start to aux_ramp_end over so many steps. 0: "
          "it is aux_ramp_end.",
          "R9");
  v.field("aux_ramp_start", c.aux_ramp_start, at_least(0), "Factor at step 0.", "R9");
  v.field("aux_ramp_end", c.aux_ramp_end, at_least(0), "Factor at the end of the ramp and beyond.", "R9");
}

template <class V>
void describe_selection(V& v, RouterConfig& c) {
  v.field(
      "topk_method", c.topk_method, one_of({"greedy", "group_limited_greedy", "noaux_tc"}),
      "How the top_k are picked. greedy: over all experts. group_limited_greedy: within the topk_group groups whose "
      "best expert scores highest. noaux_tc: within the topk_group groups whose two best sum highest, with the bias "
      "of bias_balancing added to scores for the choice alone.",
      "R3; DeepSeek-V2 and DeepSeek-V3, 2024");
  v.field("n_group", c.n_group, between(1, 65536), "Groups of n_experts / n_group neighbouring experts.", "R3");
  v.field("topk_group", c.topk_group, between(1, 65536), "Groups from which a token's experts may come.", "R3");
  v.field("logit_clip", c.logit_clip, at_least(0), "Logits are held within plus and minus this. 0: off.", "R5");
  v.field("noise", c.noise, one_of({"none", "gumbel", "gaussian", "jitter"}),
          "Randomness in training. gumbel, gaussian: added to the logits for the choice alone; with gumbel the choice "
          "is a sample. jitter: factors on the router's input.",
          "R7; Kool et al. 2019, Shazeer et al. 2017, Fedus et al. 2021");
  v.field("noise_scale", c.noise_scale, at_least(0),
          "Scale of the noise; of jitter the largest deviation from 1. 0: 1 for gumbel and gaussian, 0.01 for jitter.",
          "R7");
  v.field("semantic", c.semantic, any(),
          "Logits are scaled cosines between a projection of the token and a vector an expert: its direction counts, "
          "its length does not.",
          "R14; Chi et al. 2022 (X-MoE)");
  v.field("semantic_dim", c.semantic_dim, between(0, 65536),
          "Width of that projection. 0: the smaller of 256 and n_embd.", "R14");
  v.field("semantic_scale_init", c.semantic_scale_init, positive(),
          "Initial scale of the cosines; learned, at most 100.", "R14");
  v.field(
      "force_balanced", c.force_balanced, any(),
      "For benchmarks: every expert gets the same number of tokens, whatever the scores. Weights still come from the "
      "scores. Such a run saves no checkpoint.",
      "R15");
  v.field(
      "force_spread", c.force_spread, between(0, 10),
      "For benchmarks, with force_balanced: how unequal the experts' numbers of tokens are. They have the proportions "
      "of a softmax of normal logits with this standard deviation, the same in every layer and step; 0.5 is a load "
      "of 1.9 times the mean on the fullest of 8 experts. 0: equal.",
      "R15");
}

template <class V>
void describe_bias_and_reset(V& v, RouterConfig& c) {
  v.field("bias_balancing", c.bias_balancing, any(),
          "A bias an expert, added to its score for the choice alone, rises after each step by bias_update_rate while "
          "the expert gets less than the mean, and falls while it gets more. Needs topk_method = noaux_tc.",
          "R12; Wang et al. 2024, DeepSeek-V3, 2024");
  v.field("bias_update_rate", c.bias_update_rate, positive(), "Step of the bias.", "R12");
  v.field("reset_interval", c.reset_interval, at_least(0),
          "Every so many steps the router starts anew from its initial values and noise. 0: never.", "R13");
  v.field("reset_noise", c.reset_noise, at_least(0), "Standard deviation of what is added to the initial values.",
          "R13");
  v.field("reset_until", c.reset_until, at_least(0), "No reset after this step. 0: to the end.", "R13");
}

template <class V>
void describe(V& v, RouterConfig& c) {
  describe_scores(v, c);
  describe_selection(v, c);
  describe_balance(v, c);
  describe_bias_and_reset(v, c);
}

}  // namespace switchyard
