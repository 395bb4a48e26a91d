#include "ops/fused_mlp.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/linear.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const GroupedProducts& products_of(const Tensor& x) { return GroupedProducts::choose(x.device(), x.scalar_type()); }

DispatchPlan plan_of(const Tensor& x) { return all_rows(x.size(0), products_of(x).alignment(x.size(0), 1)); }

// The products without an activation are the library's: on one matrix they are as fast.
class FusedMlp : public torch::autograd::Function<FusedMlp> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& /*up: links*/, const Parameter* up,
                        const Parameter* down) {
    const Tensor active = products_of(x).relu2()->up(x, *up, plan_of(x));
    context->save_for_backward({x, active});
    context->saved_data["up"] = reinterpret_cast<std::int64_t>(up);
    context->saved_data["down"] = reinterpret_cast<std::int64_t>(down);
    return LinearProducts::plain().forward(active, *down);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto* up = reinterpret_cast<const Parameter*>(context->saved_data["up"].toInt());
    const auto* down = reinterpret_cast<const Parameter*>(context->saved_data["down"].toInt());
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &active = saved[1], dy = grads[0].contiguous();
    const LinearProducts& plain = LinearProducts::plain();
    const Tensor d_pre = products_of(x).relu2()->down_backward(dy, *down, active, Tensor(), plan_of(x)).d_pre_RN;
    plain.wgrad(dy, active, *down);
    down->grad_added();
    plain.wgrad(d_pre, x, *up);
    up->grad_added();
    return {plain.dgrad(d_pre, *up), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

bool has_fused_mlp(const Tensor& x_TD) {
  const GroupedProducts& products = products_of(x_TD);
  return products.relu2() && x_TD.size(0) % products.alignment(x_TD.size(0), 1) == 0;
}

Tensor fused_mlp(const Tensor& x_TD, const Parameter& up, const Parameter& down) {
  if (at::GradMode::is_enabled()) up.use(), down.use();
  return FusedMlp::apply(x_TD, up.compute, &up, &down);
}

}  // namespace switchyard::ops
