#include "ops/attention.h"

#include <ATen/Context.h>

#include <cmath>

namespace switchyard::ops {
namespace {

// true where a query at (past + row) may see the key at column.
Tensor visible(std::int64_t queries, std::int64_t keys, int window, at::Device device) {
  const Tensor row = at::arange(keys - queries, keys, at::TensorOptions().device(device)).unsqueeze(1);
  const Tensor column = at::arange(keys, at::TensorOptions().device(device)).unsqueeze(0);
  return column.le(row).logical_and(column.gt(row - window));
}

Tensor heads_first(const Tensor& x_THC, int seq_len) {  // [B, H, S, C], a view
  return x_THC.view({x_THC.size(0) / seq_len, seq_len, x_THC.size(1), x_THC.size(2)}).transpose(1, 2);
}

Tensor tokens_first(const Tensor& x_BHSC) {  // [T, H*C]
  return x_BHSC.transpose(1, 2).reshape({x_BHSC.size(0) * x_BHSC.size(2), x_BHSC.size(1) * x_BHSC.size(3)});
}

}  // namespace

Tensor attention(const Tensor& q_THC, const Tensor& k_TKC, const Tensor& v_TKC, int seq_len, int window) {
  const Tensor q = heads_first(q_THC, seq_len), k = heads_first(k_TKC, seq_len), v = heads_first(v_TKC, seq_len);
  const bool grouped = q_THC.size(1) != k_TKC.size(1);
  if (window < seq_len)
    return tokens_first(at::scaled_dot_product_attention(q, k, v, visible(seq_len, seq_len, window, q.device()), 0.0,
                                                         false, std::nullopt, grouped));
  // torch asks cuDNN for no fixed order of dq's sums; its flash attention has one.
  if (q.is_cuda() && q.scalar_type() == at::kBFloat16 && !at::globalContext().deterministicAlgorithms())
    return tokens_first(std::get<0>(at::_scaled_dot_product_cudnn_attention(
        q, k, v, std::nullopt, at::GradMode::is_enabled(), 0.0, /*is_causal=*/true)));
  return tokens_first(at::scaled_dot_product_attention(q, k, v, std::nullopt, 0.0, true, std::nullopt, grouped));
}

Tensor attention_reference(const Tensor& q_THC, const Tensor& k_TKC, const Tensor& v_TKC, int seq_len, int window) {
  const std::int64_t group = q_THC.size(1) / k_TKC.size(1);
  const Tensor q = heads_first(q_THC, seq_len), k = heads_first(k_TKC, seq_len).repeat_interleave(group, 1),
               v = heads_first(v_TKC, seq_len).repeat_interleave(group, 1);
  const Tensor score = at::matmul(q, k.transpose(-2, -1)) / std::sqrt(static_cast<double>(q.size(-1)));
  const Tensor hidden = visible(seq_len, seq_len, window, q.device()).logical_not();
  return tokens_first(at::matmul(at::softmax(score.masked_fill(hidden, -INFINITY), -1), v));
}

Tensor cached_attention(const Tensor& q_BHNC, const Tensor& k_BKLC, const Tensor& v_BKLC, int window) {
  return at::scaled_dot_product_attention(q_BHNC, k_BKLC, v_BKLC,
                                          visible(q_BHNC.size(2), k_BKLC.size(2), window, q_BHNC.device()), 0.0, false,
                                          std::nullopt, q_BHNC.size(1) != k_BKLC.size(1));
}

}  // namespace switchyard::ops
