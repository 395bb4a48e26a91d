// ops/qkv_rope.h: the joint projection split into q, k, v; QK-norm and rotary embedding; value embeddings added.
#pragma once

#include "ops/parameter.h"

namespace switchyard::ops {

struct RotaryTables {
  Tensor cos_SC, sin_SC;  // [S, C/2] fp32
};
// Angles position * theta^(-2c/C); `first` is the position of row 0 (cached decoding). Su et al. 2021.
RotaryTables rotary_tables(std::int64_t length, int head_dim, double theta, at::Device device,
                           at::ScalarType dtype = at::kFloat, std::int64_t first = 0);

struct QkvShape {
  int seq_len, heads, kv_heads, head_dim;
  bool norm;
  double eps;
  const Parameter* q_norm = nullptr;  // [C] weights of the norm, or none (then the fused kernel runs)
  const Parameter* k_norm = nullptr;
};

struct Qkv {
  Tensor q_THC, k_TKC, v_TKC;
};

// qkv [T, (H+2KV)C]; value [T, KV*C] and gate [T, KV] both given or both undefined: v += 2 sigmoid(gate) * value.
// Order: norm, then rotation (one order for both families; they commute while the norm has no weights).
Qkv qkv_rope(const Tensor& qkv, const Tensor& value, const Tensor& gate, const RotaryTables& tables,
             const QkvShape& shape);
Qkv qkv_rope_reference(const Tensor& qkv, const Tensor& value, const Tensor& gate, const RotaryTables& tables,
                       const QkvShape& shape);

}  // namespace switchyard::ops
