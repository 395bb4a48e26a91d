// ops/project_qkv.h: the joint projection to queries, keys and values; QK-norm, rotary embedding and value embeddings.
#pragma once

#include "ops/linear.h"

namespace switchyard::ops {

struct RotaryTables {
  Tensor cos_SC, sin_SC;  // [S, C/2] fp32
};
// Angles position * theta^(-2c/C); `first` is the position of row 0 (cached decoding). Su et al. 2021.
RotaryTables rotary_tables(std::int64_t length, int head_dim, double theta, at::Device device,
                           at::ScalarType dtype = at::kFloat, std::int64_t first = 0);

// What was done to queries and keys, for who takes their gradient back through it.
struct QkvRotation {
  RotaryTables tables;
  Tensor inverse_rms;  // [T, H + KV] fp32, or undefined: no norm
};

struct QkvShape {
  int seq_len, heads, kv_heads, head_dim;
  bool norm;
  double eps;
  const Parameter* q_norm = nullptr;  // [C] weights of the norm, or none (then the kernels run)
  const Parameter* k_norm = nullptr;
};

// Value embeddings: both given or both undefined.
struct ValueInput {
  Tensor value;    // [T, KV C]
  Tensor gate_TK;  // v += 2 sigmoid(gate) * value
};

// x [T, D], w [(H + 2 KV) C, D]. Returns [T, (H + 2 KV) C]: of each token H queries, then KV keys, normed and rotated,
// then KV values; [T, H + 2 KV, C] by its heads. Order: norm, then rotation (one order for both families; they commute
// while the norm has no weights); both in place, in one pass. With `rotation`, which is filled (norms without weights
// alone), backward expects queries' and keys' gradient as it was before norm and rotation: attention() gives that.
Tensor project_qkv(const Tensor& x_TD, const Parameter& w, const ValueInput& value, const RotaryTables& tables,
                   const QkvShape& shape, const LinearProducts& products = LinearProducts::plain(),
                   QkvRotation* rotation = nullptr);
Tensor project_qkv_reference(const Tensor& x_TD, const Parameter& w, const ValueInput& value,
                             const RotaryTables& tables, const QkvShape& shape,
                             const LinearProducts& products = LinearProducts::plain());

}  // namespace switchyard::ops
