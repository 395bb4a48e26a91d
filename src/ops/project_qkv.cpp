#include "ops/project_qkv.h"

#include <torch/csrc/autograd/custom_function.h>

#include "kernels/qkv_rope.h"
#include "ops/gradient.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

kernels::QkvHeads heads_of(const QkvShape& s, std::int64_t tokens) {
  return {tokens, s.seq_len, s.heads, s.kv_heads, s.head_dim};
}

// As kernels take them: qkv, and 1 / rms where there is a norm.
struct Projected {
  Tensor qkv, inverse_rms;
};

void rotate(const Projected& out, const RotaryTables& tables, const QkvShape& s) {
  launch(
      out.qkv,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::QkvRope<T>{heads_of(s, out.qkv.size(0)),    pointer<T>(out.qkv),
                                   pointer<float>(out.inverse_rms), pointer<float>(tables.cos_SC),
                                   pointer<float>(tables.sin_SC),   static_cast<float>(s.eps)};
      },
      [](const auto& work, kernels::Stream stream) { kernels::qkv_rope(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.size.tokens, 32, [&](kernels::Range range) { kernels::qkv_rope_cpu(work, range); });
      });
}

// In place on the gradient.
void rotate_back(const Tensor& d_qkv, const Projected& out, const RotaryTables& tables, const QkvShape& s) {
  launch(
      d_qkv,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::QkvRopeBackward<T>{heads_of(s, d_qkv.size(0)),      pointer<T>(out.qkv),
                                           pointer<float>(out.inverse_rms), pointer<float>(tables.cos_SC),
                                           pointer<float>(tables.sin_SC),   pointer<T>(d_qkv)};
      },
      [](const auto& work, kernels::Stream stream) { kernels::qkv_rope_backward(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.size.tokens, 32,
                        [&](kernels::Range range) { kernels::qkv_rope_backward_cpu(work, range); });
      });
}

void add_values(const Tensor& qkv, const ValueInput& value, const QkvShape& s) {
  launch(
      qkv,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::ValueEmbeddings<T>{heads_of(s, qkv.size(0)), pointer<T>(qkv), pointer<T>(value.value),
                                           pointer<T>(value.gate_TK)};
      },
      [](const auto& work, kernels::Stream stream) { kernels::value_embeddings(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.size.tokens, 32,
                        [&](kernels::Range range) { kernels::value_embeddings_cpu(work, range); });
      });
}

ValueInput value_gradients(const Tensor& d_qkv, const ValueInput& value, const QkvShape& s) {
  const ValueInput d{at::empty_like(value.value), at::empty_like(value.gate_TK)};
  launch(
      d_qkv,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::ValueEmbeddingsBackward<T>{heads_of(s, d_qkv.size(0)), pointer<T>(d_qkv),
                                                   pointer<T>(value.value),    pointer<T>(value.gate_TK),
                                                   pointer<T>(d.value),        pointer<T>(d.gate_TK)};
      },
      [](const auto& work, kernels::Stream stream) { kernels::value_embeddings_backward(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.size.tokens, 32,
                        [&](kernels::Range range) { kernels::value_embeddings_backward_cpu(work, range); });
      });
  return d;
}

class ProjectQkv : public torch::autograd::Function<ProjectQkv> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& /*w: links the graph*/,
                        const std::optional<Tensor>& value, const std::optional<Tensor>& gate, const Tensor& cos,
                        const Tensor& sin, const Parameter* parameter, const LinearProducts* products,
                        const QkvShape& s, QkvRotation* rotation) {
    const RotaryTables tables{cos, sin};
    const ValueInput given{value.value_or(Tensor()), gate.value_or(Tensor())};
    Projected out;
    if (s.norm) out.inverse_rms = at::empty({x.size(0), s.heads + s.kv_heads}, x.options().dtype(at::kFloat));
    out.qkv = products->forward(x, *parameter);
    rotate(out, tables, s);
    if (given.value.defined()) add_values(out.qkv, given, s);
    context->save_for_backward({x, out.qkv, out.inverse_rms, given.value, given.gate_TK, cos, sin});
    context->saved_data["parameter"] = reinterpret_cast<std::int64_t>(parameter);
    context->saved_data["products"] = reinterpret_cast<std::int64_t>(products);
    if (rotation) *rotation = {tables, out.inverse_rms};
    context->saved_data["turned_back"] = rotation != nullptr;
    context->saved_data["needs_input"] = x.requires_grad();
    context->saved_data["shape"] = std::vector<std::int64_t>{s.seq_len, s.heads, s.kv_heads, s.head_dim};
    return out.qkv;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto* parameter = reinterpret_cast<const Parameter*>(context->saved_data["parameter"].toInt());
    const auto* products = reinterpret_cast<const LinearProducts*>(context->saved_data["products"].toInt());
    const bool needs_input = context->saved_data["needs_input"].toBool();
    const auto shape = context->saved_data["shape"].toIntVector();
    const variable_list saved = context->get_saved_variables();
    const Tensor& x = saved[0];
    const Projected out{saved[1], saved[2]};
    const ValueInput value{saved[3], saved[4]};
    const QkvShape s{static_cast<int>(shape[0]), static_cast<int>(shape[1]), static_cast<int>(shape[2]),
                     static_cast<int>(shape[3]), out.inverse_rms.defined(),  0.0};

    const Tensor d_qkv = own_gradient(grads[0], out.qkv);
    const ValueInput d_value = value.value.defined() ? value_gradients(d_qkv, value, s) : ValueInput();
    if (!context->saved_data["turned_back"].toBool()) rotate_back(d_qkv, out, {saved[5], saved[6]}, s);
    Tensor dx = needs_input ? products->dgrad(d_qkv, *parameter) : Tensor();
    products->wgrad(d_qkv, x, *parameter);
    parameter->grad_added();
    return {dx, Tensor(), d_value.value, d_value.gate_TK, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
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

Tensor project_qkv(const Tensor& x_TD, const Parameter& w, const ValueInput& value, const RotaryTables& tables,
                   const QkvShape& shape, const LinearProducts& products, QkvRotation* rotation) {
  SWITCHYARD_ASSERT(!rotation || !shape.q_norm, "a norm's weights have a gradient of their own");
  SWITCHYARD_ASSERT(value.value.defined() == value.gate_TK.defined(), "value embeddings come with their gate");
  if (shape.q_norm) return project_qkv_reference(x_TD, w, value, tables, shape, products);
  if (at::GradMode::is_enabled()) w.use();
  return ProjectQkv::apply(x_TD, w.compute, optional(value.value), optional(value.gate_TK), tables.cos_SC,
                           tables.sin_SC, &w, &products, shape, rotation);
}

Tensor project_qkv_reference(const Tensor& x_TD, const Parameter& w, const ValueInput& value,
                             const RotaryTables& tables, const QkvShape& s, const LinearProducts& products) {
  const std::int64_t tokens = x_TD.size(0), sequences = tokens / s.seq_len, heads = s.heads + 2 * s.kv_heads;
  const Tensor qkv = linear(x_TD, w, products);
  const auto parts = qkv.view({tokens, heads, s.head_dim}).split_with_sizes({s.heads, s.kv_heads, s.kv_heads}, 1);
  const auto table = [&](const Tensor& t) {  // which may be longer than the sequences
    return t.narrow(0, 0, s.seq_len).to(qkv.scalar_type()).repeat({sequences, 1}).unsqueeze(1);
  };
  const Tensor cos = table(tables.cos_SC), sin = table(tables.sin_SC);
  Tensor v = parts[2];
  if (value.value.defined()) v = v + 2 * at::sigmoid(value.gate_TK).unsqueeze(-1) * value.value.view_as(v);
  const Tensor q = rotated(normed(parts[0], s.norm, s.eps, s.q_norm), cos, sin),
               k = rotated(normed(parts[1], s.norm, s.eps, s.k_norm), cos, sin);
  return at::cat({q, k, v}, 1).view({tokens, heads * s.head_dim});
}

}  // namespace switchyard::ops
