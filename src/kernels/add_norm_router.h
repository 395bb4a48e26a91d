// kernels/add_norm_router.h: the add and the RMSNorm before a sparse layer, which has the router's product in the same
// pass: the normed row is multiplied, and takes its gradient from the logits, while it is in registers. CUDA only.
#pragma once

#include "kernels/row_sum.h"
#include "kernels/types.h"

namespace switchyard::kernels {

// residual = x + delta,  normed = gain * residual / rms(residual)     as in kernels/add_norm.h
// logits[t, e] = sum_d normed[t, d] w[e, d]   of the normed row as it is stored; precision as in
// kernels/router_logits.h
template <class T>
struct AddNormRouter {
  const T* x;          // [T, D]
  const T* delta;      // [T, D]
  const float* gain;   // [D], or null: 1
  const float* w;      // [E, D]
  T* residual;         // [T, D]
  T* normed;           // [T, D]
  float* inverse_rms;  // [T]
  float* logits;       // [T, E]
  std::int64_t tokens;
  int width, experts;  // as add_norm_takes_router says
  float eps;
};

// With d_n = d_normed + sum of rows + d_logits w,  g = gain * d_n:
//   d_x = d_residual + backward of the norm of g (also the gradient of delta)
//   d_w[e] += sum_t d_logits[t, e] normed[t],   d_gain += sum_t d_n * residual / rms
// Sums over tokens go through partial sums that a second kernel adds in a fixed order.
template <class T>
struct AddNormRouterBackward {
  const T* d_residual;       // [T, D] or null
  const T* d_normed;         // [T, D] or null
  const float* d_logits;     // [T, E]
  const T* residual;         // [T, D]  this and the next three as forward stored them
  const T* normed;           // [T, D]; up to kFusedWeightExperts not read, and may be null
  const float* inverse_rms;  // [T]
  const float* logits;       // [T, E]
  const float* gain;         // [D] or null
  const float* w;            // [E, D]
  T* d_x;                    // [T, D]
  float* d_w;                // [E, D] added to
  float* d_gain;             // [D] added to; null: not wanted
  float* scratch;            // add_norm_router_scratch(...) floats, contents undefined
  std::int64_t tokens;
  int width, experts;
};

// Up to 32 experts, and widths whose weights fit in shared memory: a multiple of 8 up to 1536.
template <class T>
bool add_norm_takes_router(int width, int experts);
// Up to so many experts the weight's gradient is taken in the same pass; of more, its sums would not fit in registers
// and it is a product of its own.
inline constexpr int kFusedWeightExperts = 16;

template <class T>
void add_norm_router(const AddNormRouter<T>&, Stream);  // bf16, float
// rows: of the gradient of normed too, summed in fp32 and in order, beside d_normed.
template <class T>
void add_norm_router_backward(const AddNormRouterBackward<T>&, Stream, const RowSum<T>& rows = {});  // bf16, float
std::int64_t add_norm_router_scratch(std::int64_t tokens, int width, int experts);

}  // namespace switchyard::kernels
