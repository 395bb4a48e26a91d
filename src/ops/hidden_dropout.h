// ops/hidden_dropout.h: dropout on the hidden units of routed experts (moe_spec E13; Switch's "expert dropout").
#pragma once

#include "ops/dispatch_plan.h"
#include "ops/dropout.h"

namespace switchyard::ops {

// A unit's draw is keyed by (seed, step, site) and numbered by its token's place in the data, the choice k and the
// unit: the same whatever row the assignment has, on whatever rank.
struct HiddenDropout {
  double p = 0;            // 0: off, and the rest is not read
  std::uint64_t site = 0;  // which of the model's dropouts
  DropoutKey key;

  bool on() const { return p > 0; }
};

// (window * S + position) * K + k of every assignment, [T, K] int64.
Tensor assignment_ids(const DropoutKey& key, std::int64_t tokens, int top_k);

// The ids in the order of the plan's rows, [R] int64; -1 where a row has no assignment.
Tensor ids_to_rows(const Tensor& id_TK, const DispatchPlan& plan);

// rows [R, N] in place: unit kept ? unit / (1 - p) : 0 in rows with an id, up to row_count (one device int). No
// autograd: backward calls it on the gradient, and the mask is drawn again.
void drop_hidden_(const Tensor& rows_RN, const Tensor& id_R, const Tensor& row_count, const HiddenDropout& dropout);

}  // namespace switchyard::ops
