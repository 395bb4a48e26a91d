// kernels/cross_entropy.h: soft-capped cross entropy over one chunk of logits, its gradient written over them.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// z = cap * tanh(logit / cap) (cap 0: z = logit); nll[t] = ln sum_v e^z - z[target].
// With `gradient`, logits become grad_scale * d nll / d logit; else they are left as they are.
// A target of -1 is ignored: nll 0, gradient 0. 64-bit indices: T*V may exceed 2^31.
template <class T>
struct CrossEntropy {
  T* logits;                   // [T, V]
  const std::int64_t* target;  // [T]  -1 or < V
  float* nll;                  // [T] overwritten
  std::int64_t tokens;
  int vocab;  // a multiple of 8 on CUDA
  float cap, grad_scale;
  bool gradient;
};

template <class T>
void cross_entropy(const CrossEntropy<T>&, Stream);  // bf16, float
template <class T>
void cross_entropy_cpu(const CrossEntropy<T>&, Range tokens);  // float, double

}  // namespace switchyard::kernels
