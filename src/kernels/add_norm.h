// kernels/add_norm.h: the residual stream's add and the RMSNorm that follows it, in one pass.
#pragma once

#include "base/philox.h"  // SWITCHYARD_HOST_DEVICE
#include "kernels/row_sum.h"
#include "kernels/types.h"

namespace switchyard::kernels {

// residual = keep * (x + delta) + again * x0
// normed   = gain * residual / rms(residual),   rms(r) = sqrt(mean(r^2) + eps)
// Sums in fp32 (double on CPU for double). `residual` is rounded to T first and the norm is taken of the rounded value,
// so that backward, which reads the stored residual, differentiates what forward computed.
// delta may be the sum of a token's rows, taken here in order of k and rounded to T: the bits of a pass of its own.
template <class T>
struct AddNorm {
  const T* x;          // [T, D]
  const T* delta;      // [T, D], or null
  const T* x0;         // [T, D], or null: again is not read
  const float* keep;   // one device value, or null: 1
  const float* again;  // one device value; read only with x0
  const float* gain;   // [D], or null: 1
  T* residual;         // [T, D], or null: not stored (a plain norm of x, with no delta and no x0)
  T* normed;           // [T, D]
  float* inverse_rms;  // [T]  1 / rms, for backward
  std::int64_t tokens;
  int width;  // a multiple of 8 on CUDA
  float eps;
  RowSum<T> rows = {};  // instead of delta
};

// From d_residual (may be null) and d_normed (may be null), with total = d_residual + backward of the norm:
//   d_x = keep * total (also the gradient of delta; null: x is x0, whose gradient takes both)
//   d_x0 = again * total, or added to what is there (null: not wanted)
//   d_again += sum total * x0,  d_gain[j] += sum_t d_normed * residual / rms
//   d_keep += sum total * (x + delta) = (sum total * residual - again * sum total * x0) / keep
// x and delta need not be kept for that, but a keep near 0 leaves little of them in the residual: the division is by
// divisor_of_keep, so that d_keep fades out with |keep| below kLeastKeep instead of being the residual's rounding.
// The sums are accumulated in fp32, through partial sums that a second kernel adds in a fixed order.
inline constexpr float kLeastKeep = 1e-3f;
template <class T>
SWITCHYARD_HOST_DEVICE T divisor_of_keep(T keep) {
  constexpr T kLeast = static_cast<T>(kLeastKeep);
  return keep >= kLeast || keep <= -kLeast ? keep : keep < 0 ? -kLeast : kLeast;
}

template <class T>
struct AddNormBackward {
  const T* d_residual;       // [T, D] or null
  const T* d_normed;         // [T, D] or null
  const T* residual;         // [T, D] as forward stored it (x where forward stored none)
  const float* inverse_rms;  // [T]
  const T* x0;               // [T, D] or null; read only for d_keep and d_again
  const float* keep;
  const float* again;
  const float* gain;  // [D] or null
  T* d_x;             // [T, D] or null
  T* d_x0;            // [T, D] or null
  float* d_keep;      // one value, added to; null: not wanted
  float* d_again;     // one value, added to; null: not wanted
  float* d_gain;      // [D], added to; null: not wanted
  float* scratch;     // add_norm_scratch(tokens, width) floats, contents undefined
  std::int64_t tokens;
  int width;
  bool add_d_x0 = false;  // d_x0 += instead of d_x0 =
};

template <class T>
void add_norm(const AddNorm<T>&, Stream);  // bf16, float
template <class T>
void add_norm_backward(const AddNormBackward<T>&, Stream);      // bf16, float
std::int64_t add_norm_scratch(std::int64_t tokens, int width);  // CUDA: floats of scratch

template <class T>
void add_norm_cpu(const AddNorm<T>&, Range tokens);  // float, double
// CPU: the sums of this range are added to sums = {d_keep, d_again, d_gain[0..D)}; the caller adds ranges in order.
template <class T>
void add_norm_backward_cpu(const AddNormBackward<T>&, Range tokens, double* sums);

}  // namespace switchyard::kernels
