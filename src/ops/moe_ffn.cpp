#include "ops/moe_ffn.h"

#include <torch/csrc/autograd/custom_function.h>

#include "kernels/dispatch.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor gather_rows(const Tensor& x_TD, const DispatchPlan& plan) {
  Tensor rows = at::empty({plan.row_capacity, x_TD.size(1)}, x_TD.options());
  const Tensor in_use = plan.rows_in_use();
  launch(
      x_TD,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::GatherRows<T>{pointer<T>(x_TD),       plan.token_of_row_R.data_ptr<int>(),
                                      in_use.data_ptr<int>(), pointer<T>(rows),
                                      plan.row_capacity,      static_cast<int>(x_TD.size(1))};
      },
      [](const auto& work, kernels::Stream stream) { kernels::gather_rows(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.row_capacity, 64, [&](kernels::Range range) { kernels::gather_rows_cpu(work, range); });
      });
  return rows;
}

// The sum of each token's rows; the weights are in the rows already.
Tensor sum_rows(const Tensor& rows_RD, const DispatchPlan& plan) {
  Tensor out = at::empty({plan.tokens, rows_RD.size(1)}, rows_RD.options());
  launch(
      rows_RD,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::Combine<T>{pointer<T>(rows_RD), nullptr,    plan.row_of_TK.data_ptr<int>(),   pointer<T>(out),
                                   plan.tokens,         plan.top_k, static_cast<int>(rows_RD.size(1))};
      },
      [](const auto& work, kernels::Stream stream) { kernels::combine(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.tokens, 64, [&](kernels::Range range) { kernels::combine_cpu(work, range); });
      });
  return out;
}

enum class Direction { kToRows, kFromRows };

Tensor move_values(const Tensor& values, const DispatchPlan& plan, Direction direction) {
  const bool to_rows = direction == Direction::kToRows;
  Tensor out = to_rows ? at::empty({plan.row_capacity}, values.options())
                       : at::empty({plan.tokens, plan.top_k}, values.options());
  const kernels::AssignmentValues work{
      values.data_ptr<float>(), plan.row_of_TK.data_ptr<int>(), plan.token_of_row_R.data_ptr<int>(),
      out.data_ptr<float>(),    plan.tokens * plan.top_k,       plan.row_capacity};
  if (!values.is_cuda()) {
    if (to_rows)
      kernels::values_to_rows_cpu(work);
    else
      kernels::values_from_rows_cpu(work);
  } else {
#ifdef SWITCHYARD_WITH_CUDA
    if (to_rows)
      kernels::values_to_rows(work, current_stream(values));
    else
      kernels::values_from_rows(work, current_stream(values));
#endif
  }
  return out;
}

// What backward needs beside its saved tensors.
struct Call : torch::CustomClassHolder {
  ExpertWeights experts;
  DispatchPlan plan;
  const GroupedProducts* products;
};

class MoeFfn : public torch::autograd::Function<MoeFfn> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight_TK, const Tensor& /*up: links*/,
                        const ExpertWeights& experts, const DispatchPlan& plan, const GroupedProducts* products) {
    const std::int64_t width = experts.down->shape[2];
    const Tensor weight_R = move_values(weight_TK.to(at::kFloat).contiguous(), plan, Direction::kToRows);
    const Tensor pre = products->forward(gather_rows(x, plan), *experts.up, plan);
    Tensor active = at::empty({plan.row_capacity, width}, x.options());
    activation_rows(pre, weight_R, plan.token_of_row_R, plan.rows_in_use(), experts.kind, active);
    const Tensor out = sum_rows(products->forward(active, *experts.down, plan), plan);
    context->save_for_backward({x, weight_R, pre});
    auto call = c10::make_intrusive<Call>();
    call->experts = experts, call->plan = plan, call->products = products;
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    context->saved_data["weight_type"] = static_cast<std::int64_t>(weight_TK.scalar_type());
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const auto capsule = context->saved_data["call"].toCapsule();
    const Call& call = static_cast<const Call&>(*capsule);
    const auto& [experts, plan, products] = std::tie(call.experts, call.plan, call.products);
    const Tensor &x = saved[0], &weight_R = saved[1], &pre = saved[2];

    const Tensor dy_RD = gather_rows(grads[0].contiguous(), plan);
    const Tensor d_active = products->dgrad(dy_RD, *experts.down, plan);
    Tensor d_pre = at::empty_like(pre), active = at::empty_like(d_active), d_weight_R = at::empty_like(weight_R);
    activation_rows_backward(pre, d_active, weight_R, plan.token_of_row_R, plan.rows_in_use(), experts.kind, d_pre,
                             active, d_weight_R);
    products->wgrad(dy_RD, active, *experts.down, plan);
    experts.down->grad_added();
    products->wgrad(d_pre, gather_rows(x, plan), *experts.up, plan);
    experts.up->grad_added();
    const Tensor dx = sum_rows(products->dgrad(d_pre, *experts.up, plan), plan);
    const Tensor d_weight = move_values(d_weight_R, plan, Direction::kFromRows);
    return {dx,       d_weight.to(static_cast<at::ScalarType>(context->saved_data["weight_type"].toInt())),
            Tensor(), Tensor(),
            Tensor(), Tensor()};
  }
};

}  // namespace

Tensor moe_ffn(const Tensor& x_TD, const Tensor& weight_TK, const ExpertWeights& experts, const DispatchPlan& plan,
               const GroupedProducts& products) {
  if (at::GradMode::is_enabled()) experts.up->use(), experts.down->use();
  return MoeFfn::apply(x_TD, weight_TK, experts.up->compute, experts, plan, &products);
}

Tensor moe_ffn_reference(const Tensor& x_TD, const Tensor& weight_TK, const Tensor& expert_TK,
                         const ExpertWeights& experts) {
  const Tensor up = attach(*experts.up), down = attach(*experts.down);
  Tensor out = at::zeros_like(x_TD);
  for (std::int64_t e = 0; e < experts.up->shape[0]; ++e) {
    const auto where = expert_TK.eq(e).nonzero_numpy();  // {tokens, choices}
    if (where[0].numel() == 0) continue;
    const Tensor active = activation_reference(at::mm(x_TD.index_select(0, where[0]), up[e].t()), experts.kind);
    const Tensor weight = weight_TK.index({where[0], where[1]}).unsqueeze(1).to(active.scalar_type());
    out = out.index_add(0, where[0], at::mm(active * weight, down[e].t()));
  }
  return out;
}

}  // namespace switchyard::ops
