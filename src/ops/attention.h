// ops/attention.h: causal softmax attention over whole sequences.
#pragma once

#include <ATen/ATen.h>

namespace switchyard::ops {

using at::Tensor;

// q [T, H, C], k and v [T, KV, C] with T = sequences * seq_len; query head h reads kv head h * KV / H (Ainslie 2023).
// Token i sees tokens (i - window, i]; window >= seq_len: all before it. Returns [T, H*C].
// cuDNN for bf16 and full windows on Hopper and Ampere, torch's other fused kernels elsewhere.
Tensor attention(const Tensor& q_THC, const Tensor& k_TKC, const Tensor& v_TKC, int seq_len, int window);
Tensor attention_reference(const Tensor& q_THC, const Tensor& k_TKC, const Tensor& v_TKC, int seq_len, int window);

// One more token at the end of a cache: q [B, H, n, C] against k, v [B, KV, length, C]; the n queries are the last n
// positions. For generation; no gradient.
Tensor cached_attention(const Tensor& q_BHNC, const Tensor& k_BKLC, const Tensor& v_BKLC, int window);

}  // namespace switchyard::ops
