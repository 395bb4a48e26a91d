// ops/router_scores.h: from logits to the chosen experts, their weights, and the differentiable sums losses are made
// of.
#pragma once

#include "kernels/router.h"
#include "ops/parameter.h"

namespace switchyard::ops {

using kernels::Score;

Score parse_score(const std::string& name);  // softmax, sigmoid, identity; asserts on others

struct RoutingRule {
  int top_k = 2;
  int seq_len = 1;              // a token's position in its sequence breaks ties
  int first_position = 0;       // of each sequence's first token here (cached decoding)
  std::int64_t group_size = 0;  // tokens a group of the sums; 0: all in one group
  Score score = Score::kSoftmax;
  bool normalize = true;
  bool rotate_ties = true;
  double scale = 1.0;
};

// What besides the logits decides who is chosen; what is undefined decides nothing. None of it receives a gradient.
struct Selection {
  Tensor bias_E;  // fp32, added to the scores for the choice (R3)
  Tensor q_TE;    // of the logits' type: the choice is made of q itself; no bias beside it (ops/selection.h)
  Tensor real_T;  // bool: padding is routed to no expert (-1, weight 0) and adds nothing to any sum (R16)
};

// Definitions: moe_spec R2, R6, R8, R10 and kernels/router.h.
struct RouterScores {
  Tensor expert_TK;     // int32, best first
  Tensor weight_TK;     // fp32, differentiable
  Tensor count_GE;      // int32, assignments
  Tensor prob_sum_GE;   // fp32, differentiable: sum over the group's tokens of p
  Tensor importance_E;  // fp32, differentiable: sum of the weights before scale
  Tensor z_sum;         // fp32 [1], differentiable: sum over tokens of (ln sum e^l)^2
};

// logits [T, E] fp32 (fp64 in tests). Weights, sums and gradients are of the logits, whatever the choice was made of.
RouterScores router_scores(const Tensor& logits_TE, const Selection& selection, const RoutingRule& rule);
RouterScores router_scores_reference(const Tensor& logits_TE, const Selection& selection, const RoutingRule& rule);

// s in plain ATen: the kernels', within rounding.
Tensor scores_of(const Tensor& logits_TE, Score score);

struct RouterLogits {
  Tensor logits_TE;
  Tensor x_TD;  // x itself, for its other readers: their gradient is added to in place (ops/gradient.h)
};

// logits = x W^T in fp32 whatever the type of x (moe_spec R4). x [T, D], on CUDA with D a multiple of 8; W [E, D] fp32,
// or [D] as one row.
RouterLogits router_logits(const Tensor& x_TD, const Parameter& w_ED);

}  // namespace switchyard::ops
