#include "kernels/portable_gemm.h"
#include "ops/launch.h"
#include "ops/portable_products.h"
#include "ops/row_groups.h"

namespace switchyard::ops {
namespace {

using kernels::GroupedActivation;

template <class T>
Tensor run_forward(const Tensor& rows, const int* index, const Parameter& w, const DispatchPlan& plan,
                   GroupedActivation activation = GroupedActivation::kNone, const Tensor& weight_R = {}) {
  const int inner = columns_of(w), columns = rows_of(w);
  Tensor out = at::empty({plan.row_capacity, columns}, rows.options());
  const kernels::GroupedForwardOf<T> work{
      groups_of(plan), pointer<T>(rows), index,      pointer<T>(w.compute),   pointer<T>(out),
      inner,           columns,          activation, pointer<float>(weight_R)};
  kernels::portable_forward(work, current_stream(rows));
  return out;
}

}  // namespace

template <class T>
Tensor PortableProducts<T>::forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const {
  return run_forward<T>(rows_RD, nullptr, w_END, plan);
}

template <class T>
Tensor PortableProducts<T>::gathered_forward(const Tensor& x_TD, const Parameter& w_END,
                                             const DispatchPlan& plan) const {
  return run_forward<T>(x_TD, pointer<int>(plan.token_of_row_R), w_END, plan);
}

template <class T>
Tensor PortableProducts<T>::dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const {
  const int inner = rows_of(w_END), columns = columns_of(w_END);
  Tensor out = at::empty({plan.row_capacity, columns}, d_RN.options());
  const kernels::GroupedDgradOf<T> work{groups_of(plan), pointer<T>(d_RN), nullptr, pointer<T>(w_END.compute),
                                        pointer<T>(out), nullptr,          nullptr, nullptr,
                                        inner,           columns};
  kernels::portable_dgrad(work, current_stream(d_RN));
  return out;
}

template <class T>
void PortableProducts<T>::wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
                                const DispatchPlan& plan) const {
  const kernels::GroupedWgradOf<T> work{groups_of(plan),     pointer<T>(d_RN),
                                        pointer<T>(rows_RD), pointer<float>(w_END.grad),
                                        rows_of(w_END),      columns_of(w_END)};
  kernels::portable_wgrad(work, current_stream(d_RN));
}

template <class T>
Hidden PortableProducts<T>::up(const Tensor& x_TD, const Tensor& weight_R, const Parameter& w, const DispatchPlan& plan,
                               bool /*keep*/) const {
  const int* index = pointer<int>(plan.token_of_row_R);
  return {Tensor(), run_forward<T>(x_TD, index, w, plan, GroupedActivation::kRelu2, weight_R), Tensor()};
}

template <class T>
FusedActivation::Backward PortableProducts<T>::down_backward(const Tensor& dy_TD, const Parameter& w_EDN,
                                                             const Hidden& hidden, const Tensor& weight_R,
                                                             const DispatchPlan& plan) const {
  const int inner = rows_of(w_EDN), columns = columns_of(w_EDN);
  Backward out{at::empty({plan.row_capacity, columns}, dy_TD.options()), Tensor(), Tensor()};
  if (weight_R.defined())
    out.dot_PR = at::empty({kernels::portable_dot_parts(columns), plan.row_capacity}, weight_R.options());
  const kernels::GroupedDgradOf<T> work{groups_of(plan),
                                        pointer<T>(dy_TD),
                                        pointer<int>(plan.token_of_row_R),
                                        pointer<T>(w_EDN.compute),
                                        pointer<T>(out.d_pre),
                                        pointer<T>(hidden.active_RN),
                                        pointer<float>(weight_R),
                                        pointer<float>(out.dot_PR),
                                        inner,
                                        columns,
                                        GroupedActivation::kRelu2};
  kernels::portable_dgrad(work, current_stream(dy_TD));
  return out;
}

template <class T>
int PortableProducts<T>::alignment(std::int64_t /*assignments*/, int /*experts*/) const {
  return kernels::kPortableAlignment;
}

const GroupedProducts& portable_products(at::ScalarType dtype) {
  static const PortableProducts<kernels::bf16> in_bf16;
  static const PortableProducts<float> in_fp32;
  if (dtype == at::kBFloat16) return in_bf16;
  SWITCHYARD_ASSERT(dtype == at::kFloat, "grouped products on a GPU take bf16 or fp32");
  return in_fp32;
}

}  // namespace switchyard::ops
