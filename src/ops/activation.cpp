#include "ops/activation.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::int64_t output_width(const Tensor& pre, ActivationKind kind) {
  return is_gated(kind) ? pre.size(1) / 2 : pre.size(1);
}

class Activation : public torch::autograd::Function<Activation> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& pre, ActivationKind kind) {
    context->save_for_backward({pre});
    context->saved_data["kind"] = static_cast<std::int64_t>(kind);
    Tensor out = at::empty({pre.size(0), output_width(pre, kind)}, pre.options());
    activation_rows(pre, Tensor(), Tensor(), Tensor(), kind, out);
    return out;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const Tensor pre = context->get_saved_variables()[0];
    const auto kind = static_cast<ActivationKind>(context->saved_data["kind"].toInt());
    Tensor d_pre = at::empty_like(pre);
    activation_rows_backward(pre, grads[0].contiguous(), Tensor(), Tensor(), Tensor(), kind, d_pre, Tensor(), Tensor());
    return {d_pre, Tensor()};
  }
};

}  // namespace

ActivationKind parse_activation(const std::string& name) {
  if (name == "relu2") return ActivationKind::kRelu2;
  if (name == "gelu") return ActivationKind::kGelu;
  if (name == "swiglu") return ActivationKind::kSwiglu;
  SWITCHYARD_ASSERT(name == "geglu", "unknown activation " + name);
  return ActivationKind::kGeglu;
}

Tensor activation(const Tensor& pre, ActivationKind kind) { return Activation::apply(pre, kind); }

Tensor activation_reference(const Tensor& pre, ActivationKind kind) {
  if (kind == ActivationKind::kRelu2) return at::relu(pre).square();
  if (kind == ActivationKind::kGelu) return at::gelu(pre);
  const auto halves = pre.chunk(2, -1);
  return (kind == ActivationKind::kSwiglu ? at::silu(halves[0]) : at::gelu(halves[0])) * halves[1];
}

void activation_rows(const Tensor& pre, const Tensor& weight_R, const Tensor& token_of_row_R, const Tensor& row_count,
                     ActivationKind kind, const Tensor& out_RN) {
  launch(
      pre,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::Activation<T>{
            pointer<T>(pre),    pointer<float>(weight_R), pointer<int>(token_of_row_R),     pointer<int>(row_count),
            pointer<T>(out_RN), out_RN.size(0),           static_cast<int>(out_RN.size(1)), kind};
      },
      [](const auto& work, kernels::Stream stream) { kernels::activation(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.rows, 16, [&](kernels::Range range) { kernels::activation_cpu(work, range); });
      });
}

void activation_rows_backward(const Tensor& pre, const Tensor& d_out_RN, const Tensor& weight_R,
                              const Tensor& token_of_row_R, const Tensor& row_count, ActivationKind kind,
                              const Tensor& d_pre, const Tensor& again_RN, const Tensor& d_weight_R) {
  launch(
      pre,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::ActivationBackward<T>{pointer<T>(pre),
                                              pointer<T>(d_out_RN),
                                              pointer<float>(weight_R),
                                              pointer<int>(token_of_row_R),
                                              pointer<int>(row_count),
                                              pointer<T>(d_pre),
                                              pointer<T>(again_RN),
                                              pointer<float>(d_weight_R),
                                              d_out_RN.size(0),
                                              static_cast<int>(d_out_RN.size(1)),
                                              kind};
      },
      [](const auto& work, kernels::Stream stream) { kernels::activation_backward(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.rows, 16, [&](kernels::Range range) { kernels::activation_backward_cpu(work, range); });
      });
}

}  // namespace switchyard::ops
