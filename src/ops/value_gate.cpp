#include "ops/value_gate.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/gradient.h"
#include "ops/linear.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class ValueGate : public torch::autograd::Function<ValueGate> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& n, const Tensor& /*w: links the graph*/,
                               const Parameter* parameter) {
    context->save_for_backward({n});
    context->saved_data["parameter"] = reinterpret_cast<std::int64_t>(parameter);
    context->set_materialize_grads(false);
    return {at::mm(n.narrow(1, 0, parameter->shape[1]), parameter->compute.detach().t()), n};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto* parameter = reinterpret_cast<const Parameter*>(context->saved_data["parameter"].toInt());
    const Tensor n = context->get_saved_variables()[0];
    const std::int64_t channels = parameter->shape[1];
    Tensor d_n = own_gradient(grads[1], n);
    if (grads[0].defined()) {
      const Tensor d_gate = grads[0].contiguous();
      d_n.narrow(1, 0, channels).addmm_(d_gate, parameter->compute.detach());
      add_product(parameter->grad, d_gate, n.narrow(1, 0, channels));
    }
    parameter->grad_added();
    return {d_n, Tensor(), Tensor()};
  }
};

}  // namespace

GatedInput value_gate(const Tensor& n_TD, const Parameter& w_KC) {
  if (at::GradMode::is_enabled()) w_KC.use();
  const variable_list out = ValueGate::apply(n_TD, w_KC.compute, &w_KC);
  return {out[0], out[1]};
}

}  // namespace switchyard::ops
