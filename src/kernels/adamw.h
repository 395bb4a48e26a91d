// kernels/adamw.h: AdamW (Loshchilov & Hutter 2019) over many tensors in one launch, with the compute copies.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w -= lr * (m / (1-b1^n) / (sqrt(v / (1-b2^n)) + eps) + decay * w)
// n counts applied steps. Nothing is stored at all while *apply is 0: a select, not a product, because 0 * NaN is NaN.
struct AdamwTensor {
  float* weight;  // fp32 master
  const float* grad;
  float* first;
  float* second;
  bf16* copy;  // compute copy, or null
  std::int64_t count;
  float lr, beta1, weight_decay;  // lr before the schedule's factor
};

struct AdamwStep {
  const AdamwTensor* tensors;  // CUDA: device memory
  int tensor_count;
  std::int64_t largest;         // the largest tensor's count
  const float* schedule;        // one (device) value: factor on lr
  const float* grad_factor;     // one (device) value: factor on every gradient (clipping)
  const std::int64_t* applied;  // one (device) value: applied steps, this one included
  const int* apply;             // one (device) value: 0 stores nothing
  float beta2, eps;
};

void adamw(const AdamwStep&, Stream);
void adamw_cpu(const AdamwStep&, int tensor, Range elements);

}  // namespace switchyard::kernels
