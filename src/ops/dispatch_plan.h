// ops/dispatch_plan.h: which row of the expert-ordered tensors each assignment becomes. No parameters, no gradient.
#pragma once

#include <ATen/ATen.h>

namespace switchyard::ops {

using at::Tensor;

// All int32, on the activations' device; nothing is read by the host. See kernels/dispatch.h.
struct DispatchPlan {
  Tensor count_E;         // real rows of each expert
  Tensor offset_E1;       // [E+1] first row of each expert, padded to the alignment; the last is the rows in use
  Tensor end_E;           // offset_E1[1:], contiguous
  Tensor token_of_row_R;  // -1: padding
  Tensor row_of_TK;       // -1: the assignment was dropped
  Tensor tile_expert, longest_first_E, scheduler;
  std::int64_t tokens = 0, row_capacity = 0;
  int top_k = 0, experts = 0, alignment = 1;

  Tensor rows_in_use() const { return offset_E1.narrow(0, experts, 1); }
};

std::int64_t row_capacity(std::int64_t tokens, int top_k, int experts, int alignment);

// One expert that takes every token as it comes: no tables but the scheduler. T is a multiple of alignment.
DispatchPlan all_rows(const Tensor& x_TD, int alignment);

// expert [T, K] int32, -1 for a dropped assignment.
DispatchPlan dispatch(const Tensor& expert_TK, int experts, int alignment = 1);

}  // namespace switchyard::ops
