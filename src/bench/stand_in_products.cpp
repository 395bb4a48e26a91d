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

StandInProducts::StandInProducts(const ops::GroupedProducts& own) : own_(own), relu2_(*this), whole_(*this) {}

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
  // Products that have relu^2 inside are those that gather inside.
  return own_.relu2() ? forward(x_TD, w_END, plan) : GroupedProducts::gathered_forward(x_TD, w_END, plan);
}

at::Tensor StandInProducts::Relu2::up(const at::Tensor& x_TD, const Parameter& w_END,
                                      const ops::DispatchPlan& plan) const {
  return products_.forward(x_TD, w_END, plan);
}

ops::FusedRelu2::Backward StandInProducts::Relu2::down_backward(const at::Tensor& dy_TD, const Parameter& w_EDN,
                                                                const at::Tensor& /*active*/,
                                                                const at::Tensor& weight_R,
                                                                const ops::DispatchPlan& plan) const {
  const std::int64_t columns = w_EDN.shape[2];
  Backward out{products_.noise(plan.row_capacity, columns, dy_TD.options()), at::Tensor()};
  if (weight_R.defined())
    out.dot_PR = products_.noise(dot_parts(dy_TD, columns), plan.row_capacity, weight_R.options());
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
