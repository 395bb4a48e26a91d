// ops/inject_loss.h: an auxiliary loss that enters through the gradient (DeepSeek's AddAuxiliaryLoss).
#pragma once

#include <ATen/ATen.h>

namespace switchyard::ops {

using at::Tensor;

// Returns y unchanged; backward through it also sends the gradient `scale` to the scalar `loss`. scale is the main
// loss's own scale (1 / accumulation steps), which DeepSeek's version forgets: with it, injecting equals adding the
// loss.
Tensor inject_loss(const Tensor& y, const Tensor& loss, double scale);

}  // namespace switchyard::ops
