#include "ops/linear.h"

#include <torch/csrc/autograd/custom_function.h>

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class Linear : public torch::autograd::Function<Linear> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& /*w: links the graph*/,
                        const Parameter* parameter, const LinearProducts* products) {
    context->save_for_backward({x});
    context->saved_data["parameter"] = reinterpret_cast<std::int64_t>(parameter);
    context->saved_data["products"] = reinterpret_cast<std::int64_t>(products);
    context->saved_data["needs_input"] = x.requires_grad();
    return products->forward(x, *parameter);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto* parameter = reinterpret_cast<const Parameter*>(context->saved_data["parameter"].toInt());
    const auto* products = reinterpret_cast<const LinearProducts*>(context->saved_data["products"].toInt());
    const Tensor x = context->get_saved_variables()[0], dy = grads[0].contiguous();
    const bool needs_input = context->saved_data["needs_input"].toBool();
    Tensor dx = needs_input ? products->dgrad(dy, *parameter) : Tensor();
    products->wgrad(dy, x, *parameter);
    parameter->grad_added();
    return {dx, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor LinearProducts::forward(const Tensor& x_TD, const Parameter& w_ND) const {
  return at::mm(x_TD, w_ND.compute.detach().t());
}

Tensor LinearProducts::dgrad(const Tensor& dy_TN, const Parameter& w_ND) const {
  return at::mm(dy_TN, w_ND.compute.detach());
}

void LinearProducts::dgrad_into(const Tensor& dx_TD, const Tensor& dy_TN, const Parameter& w_ND) const {
  Tensor dx = dx_TD;
  at::mm_out(dx, dy_TN, w_ND.compute.detach());
}

void LinearProducts::wgrad(const Tensor& dy_TN, const Tensor& x_TD, const Parameter& w_ND) const {
  add_product(w_ND.grad, dy_TN, x_TD);
}

const LinearProducts& LinearProducts::plain() {
  static const LinearProducts products;
  return products;
}

Tensor linear(const Tensor& x_TD, const Parameter& w_ND, const LinearProducts& products) {
  if (at::GradMode::is_enabled()) w_ND.use();
  return Linear::apply(x_TD, w_ND.compute, &w_ND, &products);
}

void add_product(const Tensor& grad_ND, const Tensor& a_TN, const Tensor& b_TD) {
  Tensor grad = grad_ND;
  if (a_TN.scalar_type() == grad.scalar_type()) {
    grad.addmm_(a_TN.t(), b_TD);
  } else {
    at::addmm_out(grad, grad, a_TN.t(), b_TD, grad.scalar_type());
  }
}

}  // namespace switchyard::ops
