#include "ops/attention.h"

#include <ATen/Context.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

#ifdef SWITCHYARD_CUDNN_ATTENTION
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cudnn/Handle.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels/attention_backward.h"
#include "ops/cudnn_attention.h"
#include "ops/launch.h"
#endif

namespace switchyard::ops {
namespace {

// true where a query at (past + row) may see the key at column.
Tensor visible(std::int64_t queries, std::int64_t keys, int window, at::Device device) {
  const Tensor row = at::arange(keys - queries, keys, at::TensorOptions().device(device)).unsqueeze(1);
  const Tensor column = at::arange(keys, at::TensorOptions().device(device)).unsqueeze(0);
  return column.le(row).logical_and(column.gt(row - window));
}

struct Heads {
  Tensor q_BHSC, k_BKSC, v_BKSC;
};

void check(const Tensor& qkv, const AttentionShape& s) {
  SWITCHYARD_ASSERT(qkv.dim() == 2 && qkv.size(0) % s.seq_len == 0 &&
                        qkv.size(1) == std::int64_t{s.heads + 2 * s.kv_heads} * s.head_dim,
                    "qkv is [sequences * seq_len, (heads + 2 kv_heads) * head_dim]");
  SWITCHYARD_ASSERT(s.heads % s.kv_heads == 0 && s.window >= 1,
                    "whole groups of query heads, and a window of one or more");
}

Heads views_of(const Tensor& qkv, const AttentionShape& s) {
  // One split: the gradient of three narrowed views would be three tensors of zeros and two sums. Of qkv itself, so
  // that its gradient is no view, which the next backward would not dare to write into.
  const std::int64_t channels = s.head_dim;
  const auto parts =
      qkv.split_with_sizes({s.heads * channels, s.kv_heads * channels, s.kv_heads * channels}, /*dim=*/1);
  const auto heads_first = [&](const Tensor& part, int heads) {
    return part.view({qkv.size(0) / s.seq_len, s.seq_len, heads, s.head_dim}).transpose(1, 2);
  };
  return {heads_first(parts[0], s.heads), heads_first(parts[1], s.kv_heads), heads_first(parts[2], s.kv_heads)};
}

Tensor tokens_first(const Tensor& x_BHSC) {  // [T, H*C]
  return x_BHSC.transpose(1, 2).reshape({x_BHSC.size(0) * x_BHSC.size(2), x_BHSC.size(1) * x_BHSC.size(3)});
}

Tensor attention_of_torch(const Tensor& qkv, const AttentionShape& s) {
  const auto [q, k, v] = views_of(qkv, s);
  const bool grouped = s.heads != s.kv_heads;
  if (s.window < s.seq_len)
    return tokens_first(at::scaled_dot_product_attention(q, k, v, visible(s.seq_len, s.seq_len, s.window, q.device()),
                                                         0.0, false, std::nullopt, grouped));
#ifndef SWITCHYARD_CUDNN_ATTENTION
  // The fastest that torch has, where it takes the shape; but torch asks cuDNN for no fixed order of dq's sums.
  if (q.is_cuda() && q.scalar_type() == at::kBFloat16 && !at::globalContext().deterministicAlgorithms() &&
      s.seq_len > 1 && s.head_dim % 8 == 0 && s.head_dim <= 128)
    return tokens_first(std::get<0>(at::_scaled_dot_product_cudnn_attention(
        q, k, v, std::nullopt, at::GradMode::is_enabled(), 0.0, /*is_causal=*/true)));
#endif
  return tokens_first(at::scaled_dot_product_attention(q, k, v, std::nullopt, 0.0, true, std::nullopt, grouped));
}

#ifdef SWITCHYARD_CUDNN_ATTENTION
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Whether backward is a kernel of ours: in a fixed order always, and at 1024 tokens in less time than cuDNN's.
bool own_backward(const AttentionShape& s) {
  return kernels::attention_backward_takes(s.seq_len, s.heads, s.kv_heads, s.head_dim);
}

// The plans for this tensor, or nullptr: another type or device, or nothing that cuDNN has a kernel for.
const CudnnAttention* packed_plans(const Tensor& qkv, const AttentionShape& s) {
  if (!qkv.is_cuda() || qkv.scalar_type() != at::kBFloat16 || qkv.numel() == 0) return nullptr;
  if (at::cuda::getDeviceProperties(qkv.get_device())->major < 8) return nullptr;
  const bool backward = at::GradMode::is_enabled() && qkv.requires_grad() && !own_backward(s);
  return CudnnAttention::find(
      {qkv.get_device(), qkv.size(0) / s.seq_len, s.seq_len, s.heads, s.kv_heads, s.head_dim,
       std::min(s.window, s.seq_len), backward, backward && at::globalContext().deterministicAlgorithms()},
      at::native::getCudnnHandle());
}

// cuDNN reads and writes 16 bytes at a time, and trusts the address.
Tensor dense(const Tensor& x) {
  const Tensor rows = x.contiguous();
  return reinterpret_cast<std::uintptr_t>(rows.data_ptr()) % 16 == 0 ? rows : rows.clone();
}

Tensor lent(std::int64_t bytes, const Tensor& like) { return at::empty({bytes}, like.options().dtype(at::kByte)); }

class PackedAttention : public torch::autograd::Function<PackedAttention> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& packed, const AttentionShape& s,
                        const CudnnAttention* plans, const QkvRotation& rotation) {
    const Tensor qkv = dense(packed);
    const Tensor out = at::empty({qkv.size(0), std::int64_t{s.heads} * s.head_dim}, qkv.options());
    const Tensor statistics = at::empty({qkv.size(0) * s.heads}, qkv.options().dtype(at::kFloat));
    const Tensor workspace = lent(plans->forward_workspace(), qkv);
    plans->forward({qkv.data_ptr(), out.data_ptr(), statistics.data_ptr<float>(), workspace.data_ptr()},
                   at::native::getCudnnHandle());
    context->save_for_backward(
        {qkv, out, statistics, rotation.tables.cos_SC, rotation.tables.sin_SC, rotation.inverse_rms});
    context->saved_data["plans"] = reinterpret_cast<std::int64_t>(plans);
    context->saved_data["own_backward"] = own_backward(s);  // not asked again: plans are made for one answer
    context->saved_data["shape"] = std::vector<std::int64_t>{s.seq_len, s.heads, s.kv_heads, s.head_dim, s.window};
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &qkv = saved[0], &out = saved[1], &statistics = saved[2];
    const std::vector<std::int64_t> sizes = context->saved_data["shape"].toIntVector();
    const auto size = [&](int i) { return static_cast<int>(sizes[i]); };
    const AttentionShape s{size(0), size(1), size(2), size(3), size(4)};
    const Tensor d_out = dense(grads[0]), d_qkv = at::empty_like(qkv);
    if (context->saved_data["own_backward"].toBool()) {
      const std::int64_t sequences = qkv.size(0) / s.seq_len;
      const Tensor scratch =
          at::empty({kernels::attention_backward_scratch(sequences, s.seq_len, s.heads)}, statistics.options());
      const auto bf16 = [](const Tensor& x) { return static_cast<kernels::bf16*>(x.data_ptr()); };
      kernels::attention_backward({bf16(qkv), bf16(out), bf16(d_out), statistics.data_ptr<float>(), bf16(d_qkv),
                                   scratch.data_ptr<float>(), sequences, s.seq_len, s.heads, s.kv_heads, s.window,
                                   pointer<float>(saved[3]), pointer<float>(saved[4]), pointer<float>(saved[5])},
                                  current_stream(qkv));
      return {d_qkv, Tensor(), Tensor(), Tensor()};
    }
    const auto* plans = reinterpret_cast<const CudnnAttention*>(context->saved_data["plans"].toInt());
    const Tensor workspace = lent(plans->backward_workspace(), qkv);
    plans->backward({qkv.data_ptr(), out.data_ptr(), d_out.data_ptr(), statistics.data_ptr<float>(), d_qkv.data_ptr(),
                     workspace.data_ptr()},
                    at::native::getCudnnHandle());
    return {d_qkv, Tensor(), Tensor(), Tensor()};
  }
};
#endif

}  // namespace

Tensor attention(const Tensor& qkv, const AttentionShape& shape, const QkvRotation* rotation) {
  check(qkv, shape);
  SWITCHYARD_ASSERT(!rotation || attention_turns_back(qkv, shape), "a rotation only where backward is ours");
#ifdef SWITCHYARD_CUDNN_ATTENTION
  if (const CudnnAttention* plans = packed_plans(qkv, shape))
    return PackedAttention::apply(qkv, shape, plans, rotation ? *rotation : QkvRotation());
#endif
  return attention_of_torch(qkv, shape);
}

bool attention_turns_back([[maybe_unused]] const Tensor& x, [[maybe_unused]] const AttentionShape& shape) {
#ifdef SWITCHYARD_CUDNN_ATTENTION
  return x.is_cuda() && own_backward(shape) && packed_plans(x, shape) != nullptr;
#else
  return false;
#endif
}

bool attention_is_packed([[maybe_unused]] const Tensor& qkv, [[maybe_unused]] const AttentionShape& shape) {
#ifdef SWITCHYARD_CUDNN_ATTENTION
  return packed_plans(qkv, shape) != nullptr;
#else
  return false;
#endif
}

Tensor attention_reference(const Tensor& qkv, const AttentionShape& s) {
  check(qkv, s);
  const Heads heads = views_of(qkv, s);
  const std::int64_t group = s.heads / s.kv_heads;
  const Tensor k = heads.k_BKSC.repeat_interleave(group, 1), v = heads.v_BKSC.repeat_interleave(group, 1);
  const Tensor score = at::matmul(heads.q_BHSC, k.transpose(-2, -1)) / std::sqrt(static_cast<double>(s.head_dim));
  const Tensor hidden = visible(s.seq_len, s.seq_len, s.window, qkv.device()).logical_not();
  return tokens_first(at::matmul(at::softmax(score.masked_fill(hidden, -INFINITY), -1), v));
}

Tensor cached_attention(const Tensor& q_BHNC, const Tensor& k_BKLC, const Tensor& v_BKLC, int window) {
  return at::scaled_dot_product_attention(q_BHNC, k_BKLC, v_BKLC,
                                          visible(q_BHNC.size(2), k_BKLC.size(2), window, q_BHNC.device()), 0.0, false,
                                          std::nullopt, q_BHNC.size(1) != k_BKLC.size(1));
}

}  // namespace switchyard::ops
