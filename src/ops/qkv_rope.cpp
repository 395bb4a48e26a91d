#include "ops/qkv_rope.h"

#include <torch/csrc/autograd/custom_function.h>

#include "kernels/qkv_rope.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class QkvRope : public torch::autograd::Function<QkvRope> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& qkv, const std::optional<Tensor>& maybe_value,
                               const std::optional<Tensor>& maybe_gate, const Tensor& cos, const Tensor& sin,
                               const QkvShape& s) {
    const Tensor value = maybe_value.value_or(Tensor()), gate = maybe_gate.value_or(Tensor());
    const std::int64_t tokens = qkv.size(0);
    Tensor q = at::empty({tokens, s.heads, s.head_dim}, qkv.options());
    Tensor k = at::empty({tokens, s.kv_heads, s.head_dim}, qkv.options());
    // Without value embeddings attention reads v where the projection wrote it: two passes over [T, KV C] less.
    const bool in_place = qkv.is_cuda() && !value.defined();
    Tensor v = in_place ? qkv.detach()
                              .narrow(1, (s.heads + s.kv_heads) * s.head_dim, s.kv_heads * s.head_dim)
                              .view({tokens, s.kv_heads, s.head_dim})
                        : at::empty_like(k);
    launch(
        qkv,
        [&](auto type) {
          using T = typename decltype(type)::type;
          return kernels::QkvRope<T>{pointer<T>(qkv),
                                     pointer<T>(value),
                                     pointer<T>(gate),
                                     cos.data_ptr<float>(),
                                     sin.data_ptr<float>(),
                                     pointer<T>(q),
                                     pointer<T>(k),
                                     in_place ? nullptr : pointer<T>(v),
                                     tokens,
                                     s.seq_len,
                                     s.heads,
                                     s.kv_heads,
                                     s.head_dim,
                                     s.norm,
                                     static_cast<float>(s.eps)};
        },
        [](const auto& work, kernels::Stream stream) { kernels::qkv_rope(work, stream); },
        [](const auto& work) {
          parallel_ranges(work.tokens, 32, [&](kernels::Range range) { kernels::qkv_rope_cpu(work, range); });
        });
    context->save_for_backward({qkv, value, gate, cos, sin});
    context->saved_data["shape"] = std::vector<std::int64_t>{s.seq_len, s.heads, s.kv_heads, s.head_dim, s.norm};
    context->saved_data["eps"] = s.eps;
    return {q, k, v};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &qkv = saved[0], &value = saved[1], &gate = saved[2];
    const auto shape = context->saved_data["shape"].toIntVector();
    const float eps = static_cast<float>(context->saved_data["eps"].toDouble());
    const Tensor d_q = grads[0].contiguous(), d_k = grads[1].contiguous(), d_v = grads[2].contiguous();
    Tensor d_qkv = at::empty_like(qkv);
    Tensor d_value = value.defined() ? at::empty_like(value) : Tensor(),
           d_gate = gate.defined() ? at::empty_like(gate) : Tensor();
    launch(
        qkv,
        [&](auto type) {
          using T = typename decltype(type)::type;
          return kernels::QkvRopeBackward<T>{pointer<T>(qkv),
                                             pointer<T>(value),
                                             pointer<T>(gate),
                                             saved[3].data_ptr<float>(),
                                             saved[4].data_ptr<float>(),
                                             pointer<T>(d_q),
                                             pointer<T>(d_k),
                                             pointer<T>(d_v),
                                             pointer<T>(d_qkv),
                                             pointer<T>(d_value),
                                             pointer<T>(d_gate),
                                             qkv.size(0),
                                             static_cast<int>(shape[0]),
                                             static_cast<int>(shape[1]),
                                             static_cast<int>(shape[2]),
                                             static_cast<int>(shape[3]),
                                             shape[4] != 0,
                                             eps};
        },
        [](const auto& work, kernels::Stream stream) { kernels::qkv_rope_backward(work, stream); },
        [](const auto& work) {
          parallel_ranges(work.tokens, 32, [&](kernels::Range range) { kernels::qkv_rope_backward_cpu(work, range); });
        });
    return {d_qkv, d_value, d_gate, Tensor(), Tensor(), Tensor()};
  }
};

Tensor normed(const Tensor& x, bool norm, double eps, const Parameter* weight) {
  if (!norm) return x;
  const Tensor y = x * (x.pow(2).mean(-1, true) + eps).rsqrt();
  return weight ? (y * attach(*weight).to(y.scalar_type())) : y;
}

Tensor rotated(const Tensor& x_THC, const Tensor& cos, const Tensor& sin) {
  const Tensor first = x_THC.narrow(-1, 0, x_THC.size(-1) / 2),
               second = x_THC.narrow(-1, x_THC.size(-1) / 2, x_THC.size(-1) / 2);
  return at::cat({first * cos + second * sin, second * cos - first * sin}, -1);
}

}  // namespace

RotaryTables rotary_tables(std::int64_t length, int head_dim, double theta, at::Device device, at::ScalarType dtype,
                           std::int64_t first) {
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const Tensor frequency = at::pow(theta, at::arange(0, head_dim, 2, options) / -static_cast<double>(head_dim));
  const Tensor angle = at::arange(first, first + length, options).unsqueeze(1) * frequency;
  return {angle.cos().to(device, dtype), angle.sin().to(device, dtype)};
}

Qkv qkv_rope(const Tensor& qkv, const Tensor& value, const Tensor& gate, const RotaryTables& tables,
             const QkvShape& shape) {
  SWITCHYARD_ASSERT(value.defined() == gate.defined(), "value embeddings come with their gate");
  if (shape.q_norm) return qkv_rope_reference(qkv, value, gate, tables, shape);
  const variable_list out = QkvRope::apply(qkv, optional(value), optional(gate), tables.cos_SC, tables.sin_SC, shape);
  return {out[0], out[1], out[2]};
}

Qkv qkv_rope_reference(const Tensor& qkv, const Tensor& value, const Tensor& gate, const RotaryTables& tables,
                       const QkvShape& s) {
  const std::int64_t tokens = qkv.size(0), sequences = tokens / s.seq_len;
  const auto parts =
      qkv.view({tokens, s.heads + 2 * s.kv_heads, s.head_dim}).split_with_sizes({s.heads, s.kv_heads, s.kv_heads}, 1);
  const auto table = [&](const Tensor& t) {  // which may be longer than the sequences
    return t.narrow(0, 0, s.seq_len).to(qkv.scalar_type()).repeat({sequences, 1}).unsqueeze(1);
  };
  const Tensor cos = table(tables.cos_SC), sin = table(tables.sin_SC);
  Tensor v = parts[2];
  if (value.defined()) v = v + 2 * at::sigmoid(gate).unsqueeze(-1) * value.view_as(v);
  return {rotated(normed(parts[0], s.norm, s.eps, s.q_norm), cos, sin),
          rotated(normed(parts[1], s.norm, s.eps, s.k_norm), cos, sin), v.contiguous()};
}

}  // namespace switchyard::ops
