// ops/dropout.h: dropout drawn from a counter generator.
#pragma once

#include <ATen/ATen.h>

namespace switchyard::ops {

using at::Tensor;

// What the masks of one micro-batch depend on: seed, step, and which windows of the data its sequences are.
struct DropoutKey {
  std::uint64_t seed = 0;
  Tensor step;      // [1] int64, on the device
  Tensor window_B;  // [B] int64, on the device: global window numbers
  int seq_len = 0;
};

// x [T, D], D a multiple of 4; `site` tells the model's dropouts apart. p = 0 returns x itself.
Tensor dropout(const Tensor& x_TD, double p, std::uint64_t site, const DropoutKey& key);

}  // namespace switchyard::ops
