// ops/addend.h: what the next norm adds to the residual stream: a tensor, or rows whose sum it takes in its own pass.
#pragma once

#include <utility>

#include "ops/row_sum.h"

namespace switchyard::ops {

// With rows, delta_TD is a stand-in: one element seen as [T, D], which takes the gradient back to what made the rows.
// It has no values: who needs them calls summed().
struct Addend {
  Tensor delta_TD;  // undefined: nothing to add
  RowSum rows;

  Addend() = default;
  Addend(Tensor delta) : delta_TD(std::move(delta)) {}  // what most callers have
  Addend(Tensor stand_in, RowSum left) : delta_TD(std::move(stand_in)), rows(std::move(left)) {}
};

// The tensor [T, D]: the sum of the rows, taken here where they are left. Differentiable.
Tensor summed(const Addend& addend);

// The sum and its stand-in without autograd, [T, D] of the rows' type.
Tensor sum_rows(const RowSum& rows);
Tensor stand_in_for(const RowSum& rows);

}  // namespace switchyard::ops
