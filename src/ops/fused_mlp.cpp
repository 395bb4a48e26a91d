#include "ops/fused_mlp.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/linear.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const GroupedProducts& products_of(const Tensor& x) { return GroupedProducts::choose(x.device(), x.scalar_type()); }

DispatchPlan plan_of(const Tensor& x) { return all_rows(x, products_of(x).alignment(x.size(0), 1)); }

// The products without an activation are the library's: on one matrix they are as fast.
class FusedMlp : public torch::autograd::Function<FusedMlp> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& /*up: links*/, const Parameter* up,
                        const Parameter* down, ActivationKind kind, bool keep) {
    const Hidden hidden = products_of(x).fused(kind)->up(x, Tensor(), *up, plan_of(x), keep);
    context->save_for_backward({x, hidden.pre, hidden.active_RN});
    context->saved_data["kind"] = static_cast<std::int64_t>(kind);
    context->saved_data["up"] = reinterpret_cast<std::int64_t>(up);
    context->saved_data["down"] = reinterpret_cast<std::int64_t>(down);
    return LinearProducts::plain().forward(hidden.active_RN, *down);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto* up = reinterpret_cast<const Parameter*>(context->saved_data["up"].toInt());
    const auto* down = reinterpret_cast<const Parameter*>(context->saved_data["down"].toInt());
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], dy = grads[0].contiguous();
    const Hidden hidden{saved[1], saved[2], Tensor()};
    const auto kind = static_cast<ActivationKind>(context->saved_data["kind"].toInt());
    const LinearProducts& plain = LinearProducts::plain();
    const Tensor d_pre = products_of(x).fused(kind)->down_backward(dy, *down, hidden, Tensor(), plan_of(x)).d_pre;
    plain.wgrad(dy, hidden.active_RN, *down);
    down->grad_added();
    plain.wgrad(d_pre, x, *up);
    up->grad_added();
    return {plain.dgrad(d_pre, *up), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

bool has_fused_mlp(const Tensor& x_TD, ActivationKind kind) {
  const GroupedProducts& products = products_of(x_TD);
  return products.match_library() && products.fused(kind) && x_TD.size(0) % products.alignment(x_TD.size(0), 1) == 0;
}

Tensor fused_mlp(const Tensor& x_TD, const Parameter& up, const Parameter& down, ActivationKind kind) {
  const bool keep = at::GradMode::is_enabled();
  if (keep) up.use(), down.use();
  return FusedMlp::apply(x_TD, up.compute, &up, &down, kind, keep);
}

}  // namespace switchyard::ops
