// kernels/router_logits.h: the router's linear map, computed as in fp32 whatever the type of x (moe_spec R4), and its
// gradients. CUDA only: on a CPU a library's product of floats is as fast.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// logits[t, e] = sum_d x[t, d] w[e, d]; off by less than 1e-5 of sum_d |x w|.
template <class T>
struct RouterLogits {
  const T* x;      // [T, D]
  const float* w;  // [E, D]
  float* logits;   // [T, E] overwritten
  std::int64_t tokens;
  int width, experts;  // width: a multiple of 8
};

// d_x[t] += sum_e d_logits[t, e] w[e]       in place: the buffer holds the gradient of the other readers of x. Beyond
//                                           128 experts the sum is rounded to T after every 128.
// d_w[e] += sum_t d_logits[t, e] x[t]       through partial sums that a second kernel adds in a fixed order
template <class T>
struct RouterLogitsBackward {
  const T* x;             // [T, D]
  const float* w;         // [E, D]
  const float* d_logits;  // [T, E]
  T* d_x;                 // [T, D] added to
  float* d_w;             // [E, D] added to
  float* scratch;         // router_logits_scratch(...) floats, contents undefined
  std::int64_t tokens;
  int width, experts;
};

template <class T>
void router_logits(const RouterLogits<T>&, Stream);  // bf16, float
template <class T>
void router_logits_backward(const RouterLogitsBackward<T>&, Stream);  // bf16, float
// Its d_w alone: reads no w and no d_x.
template <class T>
void router_weight_gradient(const RouterLogitsBackward<T>&, Stream);  // bf16, float
std::int64_t router_logits_scratch(std::int64_t tokens, int width, int experts);

}  // namespace switchyard::kernels
