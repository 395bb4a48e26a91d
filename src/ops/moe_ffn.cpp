#include "ops/moe_ffn.h"

#include <torch/csrc/autograd/custom_function.h>

#include "kernels/dispatch.h"
#include "ops/launch.h"
#include "ops/row_gradient.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor sum_rows(const Tensor& rows_RD, const DispatchPlan& plan) { return sum_rows(RowSum{rows_RD, plan.row_of_TK}); }

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

// What backward needs beside its saved tensors, which are of Hidden: where the experts run as a whole, or with an
// activation of its own between the products, `pre`; where it is in the products, what FusedActivation::up leaves.
struct Call : torch::CustomClassHolder {
  ExpertWeights experts;
  DispatchPlan plan;
  bool sums;       // forward takes the sum of the rows, which are weighted already; else it leaves them here
  Tensor rows_RD;  // undefined again once moe_ffn_rows has them
  const GroupedProducts* products;
  MoeFfnOptions options;
  bool keep;                            // hidden units for backward
  Tensor id_R;                          // with dropout: what its rows are called
  c10::intrusive_ptr<RowGradient> d_x;  // of the op that gave out x, which sums the rows; null: summed here

  // Null where the activation is not part of the products; dropout comes between the two.
  const FusedExperts* whole() const { return options.dropout.on() ? nullptr : products->whole(); }
  const FusedActivation* fused() const { return options.dropout.on() ? nullptr : products->fused(experts.kind); }
  // Through the up projection: what it gives, and the activation where that is part of it.
  Hidden hidden(const Tensor& x, const Tensor& weight_TK, bool keep) const {
    if (const FusedActivation* in_products = fused())
      return in_products->up(x, move_values(weight_TK, plan, Direction::kToRows), *experts.up, plan, keep);
    return {products->gathered_forward(x, *experts.up, plan), Tensor(), Tensor()};
  }
  void drop_(const Tensor& rows_RN) const {
    if (options.dropout.on()) drop_hidden_(rows_RN, id_R, plan.rows_in_use(), options.dropout);
  }
};

struct Gradients {
  Tensor dx_RD, d_weight_PR;
};

class MoeFfn : public torch::autograd::Function<MoeFfn> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& given_weight,
                        const Tensor& /*up: links*/, const std::optional<Tensor>& /*of the zero experts: links*/,
                        const std::optional<Tensor>& /*the same*/, const c10::intrusive_ptr<Call>& call) {
    const auto& [experts, plan, products] = std::tie(call->experts, call->plan, call->products);
    const Tensor weight_TK = given_weight.to(at::kFloat).contiguous();
    Hidden hidden;
    Tensor rows_RD;
    if (const FusedExperts* whole = call->whole()) {
      const FusedExperts::Forward result = whole->forward(x, move_values(weight_TK, plan, Direction::kToRows),
                                                          *experts.up, *experts.down, experts.kind, plan);
      hidden.pre = result.pre_RN;
      rows_RD = result.out_RD;
    } else if (call->fused()) {
      hidden = call->hidden(x, weight_TK, call->keep);
      rows_RD = products->forward(hidden.active_RN, *experts.down, plan);
    } else {
      hidden = call->hidden(x, weight_TK, call->keep);
      Tensor active = at::empty({plan.row_capacity, experts.down->shape[2]}, x.options());
      activation_rows(hidden.pre, move_values(weight_TK, plan, Direction::kToRows), plan.token_of_row_R,
                      plan.rows_in_use(), experts.kind, active);
      call->drop_(active);
      rows_RD = products->forward(active, *experts.down, plan);
    }
    const Tensor out = call->sums ? sum_rows(rows_RD, plan) : stand_in_for({rows_RD, plan.row_of_TK});
    if (!call->sums) call->rows_RD = rows_RD;
    if (call->options.zero.any()) add_zero_experts_(out, x, weight_TK, call->options.zero);
    if (!call->keep) hidden = {};
    // Where the rows of x are kept, they are all that backward of the experts reads of it.
    const Tensor input = hidden.rows_RD.defined() && !call->options.zero.any() ? Tensor() : x;
    context->save_for_backward({input, weight_TK, hidden.pre, hidden.active_RN, hidden.rows_RD});
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

    const Hidden hidden = call.keep ? Hidden{saved[2], saved[3], saved[4]} : call.hidden(x, weight_TK, true);
    const Gradients d = call.whole()   ? through_whole(call, x, dy_TD, weight_TK, hidden)
                        : call.fused() ? through_fused(call, x, dy_TD, weight_TK, hidden)
                                       : through_activation(call, x, dy_TD, weight_TK, hidden);
    experts.up->grad_added();
    Tensor dx;
    if (call.d_x)
      call.d_x->put({d.dx_RD, plan.row_of_TK});
    else
      dx = sum_rows(d.dx_RD, plan);
    const Tensor d_weight = move_values(d.d_weight_PR, plan, Direction::kFromRows);
    Tensor d_map, d_vector;
    if (const ZeroExperts& zero = call.options.zero; zero.any())
      std::tie(d_map, d_vector) = zero_experts_backward_(dx, d_weight, x, dy_TD, weight_TK, zero);
    const auto weight_type = static_cast<at::ScalarType>(context->saved_data["weight_type"].toInt());
    return {dx, d_weight.to(weight_type), Tensor(), d_map, d_vector, Tensor()};
  }

 private:
  // Each adds the gradients of both weights, and says when the down projection's is complete.
  static Gradients through_whole(const Call& call, const Tensor& x, const Tensor& dy_TD, const Tensor& weight_TK,
                                 const Hidden& hidden) {
    const FusedExperts::Backward d =
        call.whole()->backward(x, dy_TD, hidden.pre, move_values(weight_TK, call.plan, Direction::kToRows),
                               *call.experts.up, *call.experts.down, call.experts.kind, call.plan);
    call.experts.down->grad_added();
    return {d.dx_RD, d.d_weight_R};
  }

  static Gradients through_fused(const Call& call, const Tensor& x, const Tensor& dy_TD, const Tensor& weight_TK,
                                 const Hidden& hidden) {
    const Tensor weight_R = move_values(weight_TK, call.plan, Direction::kToRows);
    const FusedActivation::Backward d =
        call.fused()->down_backward(dy_TD, *call.experts.down, hidden, weight_R, call.plan);
    if (d.dy_RD.defined())
      call.products->wgrad(d.dy_RD, hidden.active_RN, *call.experts.down, call.plan);
    else
      call.products->gathered_wgrad(dy_TD, hidden.active_RN, GroupedProducts::Side::kD, *call.experts.down, call.plan);
    call.experts.down->grad_added();
    return {through_up(call, x, hidden, d.d_pre), d.dot_PR};
  }

  static Gradients through_activation(const Call& call, const Tensor& x, const Tensor& dy_TD, const Tensor& weight_TK,
                                      const Hidden& hidden) {
    const DispatchPlan& plan = call.plan;
    const Tensor& pre = hidden.pre;
    const Tensor weight_R = move_values(weight_TK, plan, Direction::kToRows);
    const Tensor dy_RD = permute_rows(dy_TD, plan);
    const Tensor d_active = call.products->dgrad(dy_RD, *call.experts.down, plan);
    call.drop_(d_active);  // so that <d_active, active> counts the kept units alone
    Tensor d_pre = at::empty_like(pre), active = at::empty_like(d_active), d_weight_R = at::empty_like(weight_R);
    activation_rows_backward(pre, d_active, weight_R, plan.token_of_row_R, plan.rows_in_use(), call.experts.kind, d_pre,
                             active, d_weight_R);
    call.drop_(active);
    call.products->wgrad(dy_RD, active, *call.experts.down, plan);
    call.experts.down->grad_added();
    return {through_up(call, x, hidden, d_pre), d_weight_R};
  }

  static Tensor through_up(const Call& call, const Tensor& x, const Hidden& hidden, const Tensor& d_pre) {
    if (hidden.rows_RD.defined())
      call.products->wgrad(d_pre, hidden.rows_RD, *call.experts.up, call.plan);
    else
      call.products->gathered_wgrad(d_pre, x, GroupedProducts::Side::kRows, *call.experts.up, call.plan);
    return call.products->dgrad(d_pre, *call.experts.up, call.plan);
  }
};

// Where backward may leave the rows of x's gradient: not where zero experts add to their sum.
c10::intrusive_ptr<RowGradient> row_gradient(const Tensor& x, const ZeroExperts& zero) {
  if (!at::GradMode::is_enabled() || zero.any()) return {};
  auto found = row_gradient_before(x);
  return found && found->claim() ? found : nullptr;
}

// What dropout multiplies the hidden units of each assignment by, [T*K, N] fp32.
Tensor hidden_factors(const Tensor& expert_TK, const ExpertWeights& experts, const HiddenDropout& dropout) {
  const std::int64_t rows = expert_TK.numel();
  const Tensor factor = at::ones({rows, experts.down->shape[2]}, expert_TK.options().dtype(at::kFloat));
  drop_hidden_(factor, assignment_ids(dropout.key, expert_TK.size(0), static_cast<int>(expert_TK.size(1))).view(-1),
               at::full({1}, rows, expert_TK.options()), dropout);
  return factor;
}

// sums: whether forward takes the sum.
Addend run(const Tensor& x_TD, const Tensor& weight_TK, const ExpertWeights& experts, const DispatchPlan& plan,
           const GroupedProducts& products, const MoeFfnOptions& options, bool sums) {
  if (at::GradMode::is_enabled()) experts.up->use(), experts.down->use();
  auto call = c10::make_intrusive<Call>();
  call->experts = experts, call->plan = plan, call->products = &products, call->options = options;
  call->sums = sums;
  call->keep = at::GradMode::is_enabled() && !options.recompute;
  call->d_x = row_gradient(x_TD, options.zero);
  if (options.dropout.on())
    call->id_R = ids_to_rows(assignment_ids(options.dropout.key, plan.tokens, plan.top_k), plan);
  const Tensor out = MoeFfn::apply(x_TD, weight_TK, experts.up->compute, optional(options.zero.map_J2D),
                                   optional(options.zero.vector_JD), call);
  if (sums) return out;
  return {out, {std::move(call->rows_RD), plan.row_of_TK}};
}

}  // namespace

Tensor moe_ffn(const Tensor& x_TD, const Tensor& weight_TK, const ExpertWeights& experts, const DispatchPlan& plan,
               const GroupedProducts& products, const MoeFfnOptions& options) {
  return run(x_TD, weight_TK, experts, plan, products, options, /*sums=*/true).delta_TD;
}

Addend moe_ffn_rows(const Tensor& x_TD, const Tensor& weight_TK, const ExpertWeights& experts, const DispatchPlan& plan,
                    const GroupedProducts& products, const MoeFfnOptions& options) {
  return run(x_TD, weight_TK, experts, plan, products, options, /*sums=*/options.zero.any());
}

Tensor moe_ffn_reference(const Tensor& x_TD, const Tensor& weight_TK, const Tensor& expert_TK,
                         const ExpertWeights& experts, const MoeFfnOptions& options) {
  const HiddenDropout& dropout = options.dropout;
  const Tensor up = attach(*experts.up), down = attach(*experts.down);
  const Tensor factor_RN = dropout.on() ? hidden_factors(expert_TK, experts, dropout).to(x_TD.scalar_type()) : Tensor();
  Tensor out = at::zeros_like(x_TD);
  for (std::int64_t e = 0; e < experts.up->shape[0]; ++e) {
    const auto where = expert_TK.eq(e).nonzero_numpy();  // {tokens, choices}
    if (where[0].numel() == 0) continue;
    Tensor active = activation_reference(at::mm(x_TD.index_select(0, where[0]), up[e].t()), experts.kind);
    if (dropout.on()) active = active * factor_RN.index_select(0, where[0] * expert_TK.size(1) + where[1]);
    const Tensor weight = weight_TK.index({where[0], where[1]}).unsqueeze(1).to(active.scalar_type());
    out = out.index_add(0, where[0], at::mm(active * weight, down[e].t()));
  }
  if (options.zero.any()) out = out + zero_experts_reference(x_TD, weight_TK, options.zero);
  return out;
}

}  // namespace switchyard::ops
