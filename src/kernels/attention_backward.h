// kernels/attention_backward.h: the gradient of causal softmax attention over packed heads of 64 channels. Hopper only.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// Of out = softmax(q k' / sqrt(64)) v, a token seeing the `window` last tokens up to itself; query head h reads kv head
// h kv_heads / heads. T = sequences * seq_len, C = 64, W = (heads + 2 kv_heads) C. Sums are fp32, in a fixed order: the
// same input gives the same bits.
struct AttentionBackward {
  const bf16* qkv;        // [T, W]: of each token the query, key and value heads
  const bf16* out;        // [T, heads * C]
  const bf16* d_out;      // [T, heads * C]
  const float* log_sums;  // [sequences, heads, seq_len]: log of the softmax's denominator
  bf16* d_qkv;            // [T, W] overwritten
  float* scratch;         // attention_backward_scratch(...) floats, contents undefined
  std::int64_t sequences;
  int seq_len, heads, kv_heads;
  int window;  // 1 to seq_len
  // Where d_qkv is to be the gradient of what qkv_rope() read, its factors (kernels/qkv_rope.h); null: of its result.
  const float* cos = nullptr;  // [seq_len, C/2]
  const float* sin = nullptr;
  const float* inverse_rms = nullptr;  // [T, heads + kv_heads], or null: no norm
};

// 64 channels, whole groups of query heads, and sequences of a multiple of 4 tokens.
constexpr bool attention_backward_takes_shape(int seq_len, int heads, int kv_heads, int channels) {
  return channels == 64 && seq_len % 4 == 0 && heads % kv_heads == 0;
}
// That, and the current device is a Hopper GPU.
bool attention_backward_takes(int seq_len, int heads, int kv_heads, int channels);

void attention_backward(const AttentionBackward&, Stream);  // all pointers are aligned to 16 bytes
std::int64_t attention_backward_scratch(std::int64_t sequences, int seq_len, int heads);

}  // namespace switchyard::kernels
