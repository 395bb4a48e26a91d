#include "ops/inject_loss.h"

#include <torch/csrc/autograd/custom_function.h>

namespace switchyard::ops {
namespace {

class AddAuxiliaryLoss : public torch::autograd::Function<AddAuxiliaryLoss> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& y, const Tensor& loss, double scale) {
    context->saved_data["scale"] = scale;
    context->saved_data["like"] = loss.detach();
    return y.view_as(y);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    return {grads[0], at::full_like(context->saved_data["like"].toTensor(), context->saved_data["scale"].toDouble()),
            Tensor()};
  }
};

}  // namespace

Tensor inject_loss(const Tensor& y, const Tensor& loss, double scale) {
  return AddAuxiliaryLoss::apply(y, loss, scale);
}

}  // namespace switchyard::ops
