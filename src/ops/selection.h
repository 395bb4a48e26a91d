// ops/selection.h: what a choice is made of beside the logits: scores q for router_scores, or choices outright. No
// gradients, no shape that depends on data.
//
// Columns [0, E) of q are the real experts; zero experts (moe_spec E10) may follow them up to E', and neither groups
// nor whole-expert dropout touch those.
#pragma once

#include "ops/noise.h"
#include "ops/router_scores.h"

namespace switchyard::ops {

// Groups of E / groups consecutive experts, of which a token chooses from the `kept` best (moe_spec R3).
struct GroupLimit {
  int groups = 1, kept = 1;
  bool sum_of_two = true;  // a group's score: the sum of its 2 largest q (noaux_tc), or its largest (greedy)
};

// Noise added to logits for the choice alone (moe_spec R7).
struct ChoiceNoise {
  Noise kind = Noise::kGumbel;
  double scale = 0;  // 0: none, and nothing else is read
  std::uint64_t site = 0;
  DropoutKey key = {};
};

// What q is made of; what is undefined or as it starts changes nothing.
struct Choice {
  int experts = 0;  // real ones: the first columns
  ChoiceNoise noise;
  Tensor bias_E;     // fp32, of every column
  Tensor dropped_E;  // bool, of the real experts
  GroupLimit groups;
};

// q = score(l + noise) + bias, with dropped experts and those of a token's other groups at -inf, in one pass (kernels/
// choice.h). logits [T, E'] fp32 or fp64.
Tensor choice_scores(const Tensor& logits_TE, const Choice& choice, const RoutingRule& rule);
Tensor choice_scores_reference(const Tensor& logits_TE, const Choice& choice, const RoutingRule& rule);

// Steps of the reference.

// q [T, E'] with the experts of a token's other groups at -inf. Equal groups rank by their smallest rotated index
// (moe_spec R6; rule: top_k, seq_len, first_position, rotate_ties). A group of which one expert is above -inf has that
// one's q for its score. `experts` a multiple of limit.groups; limit.kept of 1 to limit.groups.
// Groups: DeepSeek-V2 (largest) and -V3 (sum of two), with -inf where Hugging Face's implementation writes 0.
Tensor limit_groups(const Tensor& q_TE, int experts, const GroupLimit& limit, const RoutingRule& rule);

// Experts that sit this step out, [E] bool: those with u < p, u [E] in (0, 1), except the largest u of each group, as
// many as let any `kept` groups serve top_k (without groups: the top_k largest). moe_spec E13.
Tensor dropped_experts(const Tensor& u_E, double p, int top_k, const GroupLimit& limit);
// q [T, E'] with the dropped ones of its first columns at -inf.
Tensor without_experts(const Tensor& q_TE, const Tensor& dropped_E);

// q [T, columns] whose K largest are e_tk = (t K + k) mod E, best first, t the token's row (moe_spec R15; torchtitan).
Tensor forced_balance(std::int64_t tokens, int experts, int columns, int top_k, const at::TensorOptions& like);

// The borders of experts' shares of a token's K choices, fp32 [E + 1] from 0 to K on the CPU: proportional to a softmax
// of the normal distribution's quantiles at (e + 1/2) / E times `spread`, ascending. An expert's share is at most 1,
// since a token takes it once; what exceeds that goes to the others in proportion.
Tensor share_borders(int experts, int top_k, double spread);
// q [T, columns], 1 for K experts of each token and 0 for the others, so that expert e gets (border[e+1] - border[e]) T
// tokens but for a few. Token t takes the experts in whose shares the points u_t, u_t + 1, … lie (systematic sampling,
// Madow 1949), u_t the fractional part of t times the golden ratio. border [E + 1] on the device of `like`.
Tensor forced_shares(std::int64_t tokens, const Tensor& border, int columns, const at::TensorOptions& like);

// e_tk = (id_t + k floor(E / K)) mod E, int32 [T, K]: K distinct experts for every E and K <= E (moe_spec R1; Hash
// Layers, Roller et al. 2021). id [T] of any integer type, not negative.
Tensor experts_of_ids(const Tensor& id_T, int experts, int top_k);

}  // namespace switchyard::ops
