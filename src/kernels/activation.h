// kernels/activation.h: the MLP's activation, alone or with the router's weight of each row folded in.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

enum class ActivationKind { kRelu2, kGelu, kSwiglu, kGeglu };
// swiglu and geglu read 2N columns: the first N are the gate, the last N the value: silu(gate) * value.
// gelu is the exact one (erf).
constexpr bool is_gated(ActivationKind kind) {
  return kind == ActivationKind::kSwiglu || kind == ActivationKind::kGeglu;
}

// out[r] = weight[r] * act(pre[r])          weight null: 1
// Rows from *row_count on (a device value; null: rows) are neither read nor written. Rows whose row_token is -1
// (padding) are written as zeros.
template <class T>
struct Activation {
  const T* pre;          // [R, N] or [R, 2N] when gated
  const float* weight;   // [R] or null
  const int* row_token;  // [R] or null: no padding
  const int* row_count;  // one device value or null
  T* out;                // [R, N]
  std::int64_t rows;
  int width;  // N, a multiple of 8 on CUDA
  ActivationKind kind;
};

// d_pre[r] = weight[r] * d_out[r] * act'(pre[r]);   d_weight[r] = <d_out[r], act(pre[r])>
// again[r] = weight[r] * act(pre[r]), as forward gave it, so that forward's output need not be kept.
template <class T>
struct ActivationBackward {
  const T* pre;
  const T* d_out;        // [R, N]
  const float* weight;   // [R] or null
  const int* row_token;  // [R] or null
  const int* row_count;  // one device value or null
  T* d_pre;              // [R, N] or [R, 2N]
  T* again;              // [R, N] or null: not wanted; may be d_out itself
  float* d_weight;       // [R] or null: not wanted
  std::int64_t rows;
  int width;
  ActivationKind kind;
};

template <class T>
void activation(const Activation<T>&, Stream);  // bf16, float
template <class T>
void activation_backward(const ActivationBackward<T>&, Stream);  // bf16, float
template <class T>
void activation_cpu(const Activation<T>&, Range rows);  // float, double
template <class T>
void activation_backward_cpu(const ActivationBackward<T>&, Range rows);

}  // namespace switchyard::kernels
