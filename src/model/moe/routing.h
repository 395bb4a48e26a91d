// What the router decided about the tokens of one micro-batch.
#pragma once

#include "ops/router_scores.h"

namespace switchyard {

struct Routing {
  ops::RouterScores scores;  // choices, weights, counts, and the sums the balance losses are made of
  std::int64_t tokens = 0, group_size = 0;
  int experts = 0, top_k = 0;
};

}  // namespace switchyard
