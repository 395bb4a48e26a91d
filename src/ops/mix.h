// ops/mix.h: two outputs mixed by a share that is a number on the device.
#pragma once

#include <ATen/ATen.h>

namespace switchyard::ops {

using at::Tensor;

// share * x + (1 - share) * y for x, y [T, D] of one type and share [1], fp32 (fp64 in tests). The products are made in
// the share's type and rounded once. A share of 1 gives x, of 0 gives y, bit for bit where both are finite.
// d share = <dz, x - y>.
Tensor mix(const Tensor& x_TD, const Tensor& y_TD, const Tensor& share);

// share * x. The same.
Tensor scaled(const Tensor& x_TD, const Tensor& share);

}  // namespace switchyard::ops
