// What the router decided about the tokens of one micro-batch, and what became of it.
#pragma once

#include <vector>

#include "ops/router_scores.h"
#include "ops/zero_experts.h"

namespace switchyard {

// Assignments that did not go where the router sent them; int64 [1] each, undefined where no expert has a capacity.
struct Diverted {
  at::Tensor dropped, to_null, rerouted;
};

struct Routing {
  ops::RouterScores scores;  // choices, weights, counts, and the sums the balance losses are made of
  at::Tensor logits_TE;      // what the scores are of, differentiable; undefined without a learned router
  std::int64_t tokens = 0, group_size = 0;
  int experts = 0, top_k = 0;  // experts: columns of the router, zero experts among them
  at::Tensor q_TE, bias_E;     // what the choice was made of, where not of the scores alone: q, or scores + bias
  Diverted diverted;
};

// Every tensor of it, in a fixed order: what a block that is computed again hands out (ops/recompute.h).
inline std::vector<at::Tensor*> tensors_of(Routing& r) {
  ops::RouterScores& s = r.scores;
  return {&s.expert_TK, &s.weight_TK, &s.count_GE, &s.prob_sum_GE,      &s.importance_E,     &s.z_sum,
          &r.logits_TE, &r.q_TE,      &r.bias_E,   &r.diverted.dropped, &r.diverted.to_null, &r.diverted.rerouted};
}

// Which expert computes what: the router's choice after capacities.
struct Dispatched {
  at::Tensor x_TD;        // the layer's input, for those that read it from here on
  at::Tensor expert_TK;   // int32; -1: none does
  at::Tensor weight_TK;   // fp32, differentiable
  ops::ZeroExperts zero;  // null and zero experts, which join their sum
};

}  // namespace switchyard
