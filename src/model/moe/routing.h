// What the router decided about the tokens of one micro-batch, and what a layer reports about it.
#pragma once

#include "ops/router_scores.h"

namespace switchyard {

struct Routing {
  ops::RouterScores scores;  // choices, weights, counts, and the sums the balance losses are made of
  std::int64_t tokens = 0, group_size = 0;
  int experts = 0, top_k = 0;
};

// Detached, on the device; nothing here is read before the log asks.
struct RoutingReport {
  at::Tensor count_E;          // int32: assignments of this micro-batch
  at::Tensor prob_E;           // fp32: sum over tokens of the routing probability
  at::Tensor balance, z_loss;  // fp32 scalars, raw (without coefficients); undefined in evaluation
};

}  // namespace switchyard
