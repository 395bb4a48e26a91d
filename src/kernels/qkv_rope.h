// kernels/qkv_rope.h: the joint projection becomes q, k, v as attention reads them, in place.
#pragma once

#include "base/philox.h"  // SWITCHYARD_HOST_DEVICE
#include "kernels/types.h"

namespace switchyard::kernels {

// Row t of qkv [T, (H + 2 KV) C] holds H query heads, then KV key heads, then KV value heads, each of C channels.
struct QkvHeads {
  std::int64_t tokens;
  int seq_len, heads, kv_heads, head_dim;  // S, H, KV; C: even, on CUDA a multiple of 16, at most 256

  SWITCHYARD_HOST_DEVICE int rotated() const { return heads + kv_heads; }
  SWITCHYARD_HOST_DEVICE int width() const { return (heads + 2 * kv_heads) * head_dim; }
};

// Queries and keys: optional RMSNorm over the C channels (no weight), then half-split RoPE at position t mod S:
//   out[c] = in[c] cos + in[c + C/2] sin,  out[c + C/2] = in[c + C/2] cos - in[c] sin   for c < C/2
// The sign of the rotation is nanochat's (a rotation by -angle); scores depend on position differences either way.
template <class T>
struct QkvRope {
  QkvHeads size;
  T* qkv;
  float* inverse_rms;  // [T, H + KV]  1 / rms, for backward, fp32 for double too; null: no norm
  const float* cos;    // [S, C/2]
  const float* sin;    // [S, C/2]
  float eps;
};
// From the result: the rotation is orthogonal, and the norm's gradient needs what it returned alone.
template <class T>
struct QkvRopeBackward {
  QkvHeads size;
  const T* qkv;  // forward's result; read only with a norm
  const float* inverse_rms;
  const float* cos;
  const float* sin;
  T* d_qkv;  // of the rotated heads; becomes the projection's. Values are not touched
};

// Values: v + 2 sigmoid(gate[t, j]) * value[t, j, :] for kv head j.
template <class T>
struct ValueEmbeddings {
  QkvHeads size;
  T* qkv;
  const T* value;  // [T, KV C] value embeddings of the tokens
  const T* gate;   // [T, KV] gate logits
};
template <class T>
struct ValueEmbeddingsBackward {
  QkvHeads size;
  const T* d_qkv;
  const T* value;
  const T* gate;
  T* d_value;  // [T, KV C]
  T* d_gate;   // [T, KV]
};

template <class T>
void qkv_rope(const QkvRope<T>&, Stream);  // bf16, float
template <class T>
void qkv_rope_backward(const QkvRopeBackward<T>&, Stream);
template <class T>
void value_embeddings(const ValueEmbeddings<T>&, Stream);
template <class T>
void value_embeddings_backward(const ValueEmbeddingsBackward<T>&, Stream);
template <class T>
void qkv_rope_cpu(const QkvRope<T>&, Range tokens);  // float, double
template <class T>
void qkv_rope_backward_cpu(const QkvRopeBackward<T>&, Range tokens);
template <class T>
void value_embeddings_cpu(const ValueEmbeddings<T>&, Range tokens);
template <class T>
void value_embeddings_backward_cpu(const ValueEmbeddingsBackward<T>&, Range tokens);

}  // namespace switchyard::kernels
