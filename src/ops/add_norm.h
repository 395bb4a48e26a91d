// ops/add_norm.h: the residual stream's add and the norm that follows.
#pragma once

#include "ops/addend.h"
#include "ops/parameter.h"

namespace switchyard::ops {

// What is added where: x' = keep * (x + delta) + again * x0;  n = gain * x' / rms(x').
// keep and again are element `index` of two parameters [L] (used together), or none: x' = x + delta.
struct Residual {
  const Parameter* keep = nullptr;
  const Parameter* again = nullptr;
  int index = 0;
  const Parameter* gain = nullptr;  // [D] or none
  double eps = 1e-6;
  const Parameter* router = nullptr;  // [E, D] or none: its product with n comes with the norm
};

struct Normed {
  Tensor x_TD;       // x'
  Tensor n_TD;       // n
  Tensor x0_TD;      // x0 itself, for its next reader: that one's gradient is added to in place (ops/gradient.h)
  Tensor logits_TE;  // n W^T in fp32, with a router (ops/router_scores.h)
};

// delta may be undefined (nothing to add), or rows that are summed here; x0 is needed with keep. Shapes [T, D]; D a
// multiple of 8.
// Gradients for x, delta and x0 go to autograd, those of the scalars and the gain into their slices.
Normed add_norm(const Tensor& x_TD, const Addend& delta, const Tensor& x0_TD, const Residual& residual);

// The same in plain ATen, slow and obvious; tests compare the two, forward and backward.
Normed add_norm_reference(const Tensor& x_TD, const Tensor& delta_TD, const Tensor& x0_TD, const Residual& residual);

// n = gain * x / rms(x) alone.
Tensor rms_norm(const Tensor& x_TD, const Parameter* gain, double eps);

}  // namespace switchyard::ops
