#include "ops/moe_ffn.h"

#include <torch/csrc/autograd/custom_function.h>

#include "kernels/dispatch.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The sum of each token's rows, weighted where the weights are not in the rows already.
Tensor sum_rows(const Tensor& rows_RD, const DispatchPlan& plan, const Tensor& weight_TK = {}) {
  Tensor out = at::empty({plan.tokens, rows_RD.size(1)}, rows_RD.options());
  launch(
      rows_RD,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::Combine<T>{pointer<T>(rows_RD),
                                   pointer<float>(weight_TK),
                                   plan.row_of_TK.data_ptr<int>(),
                                   pointer<T>(out),
                                   plan.tokens,
                                   plan.top_k,
                                   static_cast<int>(rows_RD.size(1))};
      },
      [](const auto& work, kernels::Stream stream) { kernels::combine(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.tokens, 64, [&](kernels::Range range) { kernels::combine_cpu(work, range); });
      });
  return out;
}

enum class Direction { kToRows, kFromRows };

// values [T, K] to rows [R], or the sum of values [P, R] from rows to [T, K].
Tensor move_values(const Tensor& values, const DispatchPlan& plan, Direction direction) {
  const bool to_rows = direction == Direction::kToRows;
  Tensor out = to_rows ? at::empty({plan.row_capacity}, values.options())
                       : at::empty({plan.tokens, plan.top_k}, values.options());
  const kernels::AssignmentValues work{values.data_ptr<float>(),
                                       plan.row_of_TK.data_ptr<int>(),
                                       plan.token_of_row_R.data_ptr<int>(),
                                       out.data_ptr<float>(),
                                       plan.tokens * plan.top_k,
                                       plan.row_capacity,
                                       to_rows ? 1 : static_cast<int>(values.numel() / plan.row_capacity)};
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

const FusedRelu2* fused_of(const GroupedProducts& products, ActivationKind kind) {
  return kind == ActivationKind::kRelu2 ? products.relu2() : nullptr;
}

struct Gradients {
  Tensor d_pre_RN, d_weight_PR;
};

class MoeFfn : public torch::autograd::Function<MoeFfn> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& given_weight,
                        const Tensor& /*up: links*/, const ExpertWeights& experts, const DispatchPlan& plan,
                        const GroupedProducts* products) {
    const Tensor weight_TK = given_weight.to(at::kFloat).contiguous();
    Tensor out, kept;  // kept for backward: the activation where products hold it, else what it is made of
    if (const FusedRelu2* fused = fused_of(*products, experts.kind)) {
      kept = fused->up(x, *experts.up, plan);
      out = sum_rows(products->forward(kept, *experts.down, plan), plan, weight_TK);
    } else {
      kept = products->gathered_forward(x, *experts.up, plan);
      Tensor active = at::empty({plan.row_capacity, experts.down->shape[2]}, x.options());
      activation_rows(kept, move_values(weight_TK, plan, Direction::kToRows), plan.token_of_row_R, plan.rows_in_use(),
                      experts.kind, active);
      out = sum_rows(products->forward(active, *experts.down, plan), plan);
    }
    context->save_for_backward({x, weight_TK, kept});
    auto call = c10::make_intrusive<Call>();
    call->experts = experts, call->plan = plan, call->products = products;
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    context->saved_data["weight_type"] = static_cast<std::int64_t>(given_weight.scalar_type());
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const auto capsule = context->saved_data["call"].toCapsule();
    const Call& call = static_cast<const Call&>(*capsule);
    const auto& [experts, plan, products] = std::tie(call.experts, call.plan, call.products);
    const Tensor& x = saved[0];
    const Tensor &weight_TK = saved[1], dy_TD = grads[0].contiguous();

    const FusedRelu2* fused = fused_of(*products, experts.kind);
    const Gradients d = fused ? through_fused(*fused, call, dy_TD, weight_TK, saved[2])
                              : through_activation(call, dy_TD, weight_TK, saved[2]);
    experts.down->grad_added();
    products->wgrad(d.d_pre_RN, permute_rows(x, plan), *experts.up, plan);
    experts.up->grad_added();
    const Tensor dx = sum_rows(products->dgrad(d.d_pre_RN, *experts.up, plan), plan);
    const Tensor d_weight = move_values(d.d_weight_PR, plan, Direction::kFromRows);
    return {dx,       d_weight.to(static_cast<at::ScalarType>(context->saved_data["weight_type"].toInt())),
            Tensor(), Tensor(),
            Tensor(), Tensor()};
  }

 private:
  // Down to the pre-activation, with the down projection's weight gradient added.
  static Gradients through_fused(const FusedRelu2& fused, const Call& call, const Tensor& dy_TD,
                                 const Tensor& weight_TK, const Tensor& active) {
    const Tensor weight_R = move_values(weight_TK, call.plan, Direction::kToRows);
    const FusedRelu2::Backward d = fused.down_backward(dy_TD, *call.experts.down, active, weight_R, call.plan);
    call.products->wgrad(permute_rows(dy_TD, call.plan, weight_TK), active, *call.experts.down, call.plan);
    return {d.d_pre_RN, d.dot_PR};
  }

  static Gradients through_activation(const Call& call, const Tensor& dy_TD, const Tensor& weight_TK,
                                      const Tensor& pre) {
    const DispatchPlan& plan = call.plan;
    const Tensor weight_R = move_values(weight_TK, plan, Direction::kToRows);
    const Tensor dy_RD = permute_rows(dy_TD, plan);
    const Tensor d_active = call.products->dgrad(dy_RD, *call.experts.down, plan);
    Tensor d_pre = at::empty_like(pre), active = at::empty_like(d_active), d_weight_R = at::empty_like(weight_R);
    activation_rows_backward(pre, d_active, weight_R, plan.token_of_row_R, plan.rows_in_use(), call.experts.kind, d_pre,
                             active, d_weight_R);
    call.products->wgrad(dy_RD, active, *call.experts.down, plan);
    return {d_pre, d_weight_R};
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
