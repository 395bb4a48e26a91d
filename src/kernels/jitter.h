// kernels/jitter.h: a random factor on every channel of the router's input (moe_spec R7; Fedus et al. 2021).
#pragma once

#include "kernels/noise.h"

namespace switchyard::kernels {

// out = add + x (1 - amount + 2 amount u), u uniform as noise() draws it for D columns; rounded to T once. Backward is
// the same call on the gradient: the factors are drawn again.
template <class T>
struct Jitter {
  const T* x;       // [T, D]
  const T* add;     // [T, D] or null: 0
  T* out;           // [T, D] overwritten; may be x or add
  NoiseDraw noise;  // uniform, of D columns; its `out` is not written
  std::int64_t tokens;
  int width;  // a multiple of 8 on CUDA
  float amount;
};

template <class T>
void jitter(const Jitter<T>&, Stream);  // bf16, float
template <class T>
void jitter_cpu(const Jitter<T>&, Range tokens);  // float, double

SWITCHYARD_HOST_DEVICE float jitter_factor(float u, float amount) { return u * (2 * amount) + (1 - amount); }

}  // namespace switchyard::kernels
