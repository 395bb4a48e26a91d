// ops/attention.h: causal softmax attention over whole sequences.
#pragma once

#include "ops/project_qkv.h"

namespace switchyard::ops {

using at::Tensor;

// heads is a multiple of kv_heads: query head h reads kv head h * kv_heads / heads (Ainslie 2023). Token i sees tokens
// (i - window, i], window >= 1; window >= seq_len: all before it.
struct AttentionShape {
  int seq_len, heads, kv_heads, head_dim, window;
};

// qkv [T, (H + 2 KV) C]: of each token H query heads, then KV key heads, then KV value heads, C channels each (as the
// projection writes it); T = sequences * seq_len. Returns [T, H*C]. The gradient comes back as one tensor of qkv's
// shape. bf16 on a GPU: cuDNN's fused kernels, which read and write the packed tensors where they are; backward of
// heads of 64 channels on Hopper by a kernel of ours. torch's fused kernels on CPUs, for fp32, and where cuDNN has none
// for the shape (the log says so once). A shape's first call builds its plans: make it before a CUDA graph is recorded.
// With `rotation`, of project_qkv(), queries' and keys' gradient is that of the projection, before norm and rotation.
Tensor attention(const Tensor& qkv, const AttentionShape& shape, const QkvRotation* rotation = nullptr);
Tensor attention_reference(const Tensor& qkv, const AttentionShape& shape);

// Whether attention() of this tensor runs cuDNN's kernels through our plans, as it does or does not require a gradient.
bool attention_is_packed(const Tensor& qkv, const AttentionShape& shape);

// Whether attention() takes a rotation, of tokens like these (their number, device and type); backward is then ours.
bool attention_turns_back(const Tensor& x_TD, const AttentionShape& shape);

// One more token at the end of a cache: q [B, H, n, C] against k, v [B, KV, length, C]; the n queries are the last n
// positions. For generation; no gradient.
Tensor cached_attention(const Tensor& q_BHNC, const Tensor& k_BKLC, const Tensor& v_BKLC, int window);

}  // namespace switchyard::ops
