#include "bench/stand_in_products.h"

#ifdef SWITCHYARD_WITH_CUDA
#include "kernels/grouped_gemm.h"
#endif

namespace switchyard::bench {
namespace {

// Rows of partial sums that the fused backward leaves for the gradient of the weights.
int dot_parts([[maybe_unused]] const at::Tensor& like, [[maybe_unused]] std::int64_t columns) {
#ifdef SWITCHYARD_WITH_CUDA
  if (like.is_cuda()) return kernels::grouped_dot_parts(static_cast<int>(columns));
#endif
  return 1;
}

}  // namespace

StandInProducts::StandInProducts(const ops::GroupedProducts& own)
    : own_(own),
      relu2_(*this, ops::ActivationKind::kRelu2),
      swiglu_(*this, ops::ActivationKind::kSwiglu),
      whole_(*this) {}

at::Tensor StandInProducts::noise(std::int64_t rows, std::int64_t columns, const at::TensorOptions& options) const {
  at::Tensor& drawn = drawn_[{rows, columns, options.dtype().toScalarType()}];
  if (!drawn.defined()) {
    const at::NoGradGuard no_grad;
    drawn = at::randn({rows, columns}, options.requires_grad(false));
  }
  return drawn;
}

at::Tensor StandInProducts::forward(const at::Tensor& rows_RD, const Parameter& w_END,
                                    const ops::DispatchPlan& plan) const {
  return noise(plan.row_capacity, w_END.shape[1], rows_RD.options());
}

at::Tensor StandInProducts::dgrad(const at::Tensor& d_RN, const Parameter& w_END, const ops::DispatchPlan& plan) const {
  return noise(plan.row_capacity, w_END.shape[2], d_RN.options());
}

at::Tensor StandInProducts::gathered_forward(const at::Tensor& x_TD, const Parameter& w_END,
                                             const ops::DispatchPlan& plan) const {
  // Products that have an activation inside are those that gather inside.
  return own_.fused(ops::ActivationKind::kRelu2) ? forward(x_TD, w_END, plan)
                                                 : GroupedProducts::gathered_forward(x_TD, w_END, plan);
}

void StandInProducts::gathered_wgrad(const at::Tensor& d, const at::Tensor& rows, Side by_tokens,
                                     const Parameter& w_END, const ops::DispatchPlan& plan) const {
  const ops::FusedActivation* fused = own_.fused(ops::ActivationKind::kRelu2);
  if (!fused || !fused->gathers()) GroupedProducts::gathered_wgrad(d, rows, by_tokens, w_END, plan);
}

at::Tensor StandInProducts::Activation::kept_rows(const at::Tensor& x_TD, const ops::DispatchPlan& plan) const {
  if (!gathers() || !plan.token_of_row_R.defined()) return {};
  return products_.noise(plan.row_capacity, x_TD.size(1), x_TD.options());
}

ops::Hidden StandInProducts::Activation::up(const at::Tensor& x_TD, const at::Tensor& /*weight*/, const Parameter& w,
                                            const ops::DispatchPlan& plan, bool keep) const {
  const at::Tensor pre = products_.forward(x_TD, w, plan), rows = keep ? kept_rows(x_TD, plan) : at::Tensor();
  if (!ops::is_gated(kind_)) return {at::Tensor(), pre, rows};
  return {pre, products_.noise(plan.row_capacity, w.shape[1] / 2, x_TD.options()), rows};
}

ops::FusedActivation::Backward StandInProducts::Activation::down_backward(const at::Tensor& dy_TD,
                                                                          const Parameter& w_EDN,
                                                                          const ops::Hidden& hidden,
                                                                          const at::Tensor& weight_R,
                                                                          const ops::DispatchPlan& plan) const {
  const at::Tensor& like = hidden.pre.defined() ? hidden.pre : hidden.active_RN;
  Backward out{products_.noise(plan.row_capacity, like.size(1), dy_TD.options()), at::Tensor(), kept_rows(dy_TD, plan)};
  if (weight_R.defined())
    out.dot_PR = products_.noise(dot_parts(dy_TD, w_EDN.shape[2]), plan.row_capacity, weight_R.options());
  return out;
}

ops::FusedExperts::Forward StandInProducts::Whole::forward(const at::Tensor& x_TD, const at::Tensor& /*weight*/,
                                                           const Parameter& up, const Parameter& down,
                                                           ops::ActivationKind /*kind*/,
                                                           const ops::DispatchPlan& plan) const {
  return {products_.noise(plan.row_capacity, up.shape[1], x_TD.options()),
          products_.noise(plan.row_capacity, down.shape[1], x_TD.options())};
}

ops::FusedExperts::Backward StandInProducts::Whole::backward(const at::Tensor& x_TD, const at::Tensor& /*dy*/,
                                                             const at::Tensor& /*pre*/, const at::Tensor& weight_R,
                                                             const Parameter& up, const Parameter& /*down*/,
                                                             ops::ActivationKind /*kind*/,
                                                             const ops::DispatchPlan& plan) const {
  return {products_.noise(plan.row_capacity, up.shape[2], x_TD.options()),
          products_.noise(1, plan.row_capacity, weight_R.options())};
}

}  // namespace switchyard::bench
