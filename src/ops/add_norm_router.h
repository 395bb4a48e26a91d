// ops/add_norm_router.h: add_norm that has the router's product in the same pass, by the kernel of that name.
#pragma once

#include "ops/add_norm.h"

namespace switchyard::ops {

// Whether the kernel takes these: on CUDA, x' = x + delta without scalars, a router of a shape that fits.
bool norm_takes_router(const Tensor& x_TD, const Tensor& delta_TD, const Residual& residual);

// x', n and the logits; only where norm_takes_router. The gradient of the router's weight goes into its slice.
Normed add_norm_router(const Tensor& x_TD, const Tensor& delta_TD, const Residual& residual);

class RowGradient;
// Where x is the n of such a call: where its gradient may be left as rows (ops/row_gradient.h); else null.
c10::intrusive_ptr<RowGradient> row_gradient_of_norm(const Tensor& x_TD);

}  // namespace switchyard::ops
