// kernels/qkv_rope.h: from one joint projection to q, k, v as attention reads them, in one pass.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// Row t of qkv holds H query heads, then KV key heads, then KV value heads, each of C channels.
//   q, k:  optional RMSNorm over the C channels (no weight), then half-split RoPE at position t mod S:
//          out[c] = in[c] cos + in[c + C/2] sin,  out[c + C/2] = in[c + C/2] cos - in[c] sin   for c < C/2
//   v:     v + 2 sigmoid(gate[t, j]) * value[t, j, :] for kv head j, where value is given
// The sign of the rotation is nanochat's (a rotation by -angle); scores depend on position differences either way.
template <class T>
struct QkvRope {
  const T* qkv;      // [T, (H + 2 KV) C]
  const T* value;    // [T, KV C] value embeddings of the tokens, or null
  const T* gate;     // [T, KV] gate logits, or null with value
  const float* cos;  // [S, C/2]
  const float* sin;  // [S, C/2]
  T* q;              // [T, H, C]
  T* k;              // [T, KV, C]
  T* v;              // [T, KV, C], or on CUDA null without value: the values stay where they are
  std::int64_t tokens;
  int seq_len, heads, kv_heads, head_dim;  // C: a multiple of 16, at most 256 on CUDA
  bool norm;
  float eps;
};

// Reads qkv again and recomputes the norms.
template <class T>
struct QkvRopeBackward {
  const T* qkv;
  const T* value;
  const T* gate;
  const float* cos;
  const float* sin;
  const T* d_q;  // [T, H, C]
  const T* d_k;  // [T, KV, C]
  const T* d_v;  // [T, KV, C]
  T* d_qkv;      // [T, (H + 2 KV) C]
  T* d_value;    // [T, KV C], or null with value
  T* d_gate;     // [T, KV], or null with value
  std::int64_t tokens;
  int seq_len, heads, kv_heads, head_dim;
  bool norm;
  float eps;
};

template <class T>
void qkv_rope(const QkvRope<T>&, Stream);  // bf16, float
template <class T>
void qkv_rope_backward(const QkvRopeBackward<T>&, Stream);  // bf16, float
template <class T>
void qkv_rope_cpu(const QkvRope<T>&, Range tokens);  // float, double
template <class T>
void qkv_rope_backward_cpu(const QkvRopeBackward<T>&, Range tokens);

}  // namespace switchyard::kernels
