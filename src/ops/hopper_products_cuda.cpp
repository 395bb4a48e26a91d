#include <ATen/cuda/CUDAContext.h>

#include "kernels/device.h"
#include "kernels/grouped_gemm.h"
#include "ops/hopper_products.h"
#include "ops/launch.h"
#include "ops/row_groups.h"

namespace switchyard::ops {
namespace {

using kernels::bf16;
using kernels::GroupedActivation;

Tensor empty_rows(const Tensor& like, const DispatchPlan& plan, int columns) {
  return at::empty({plan.row_capacity, columns}, like.options());
}

// Room for the rows that the plan names, where it names them and a weight gradient will not gather them again.
Tensor gathered_rows(const Tensor& x_TD, int hidden, const DispatchPlan& plan) {
  const bool wanted = plan.token_of_row_R.defined() && hidden > kernels::kMostUnitsToGather;
  return wanted ? empty_rows(x_TD, plan, static_cast<int>(x_TD.size(1))) : Tensor();
}

Tensor run_forward(const Tensor& rows, const int* index, const Parameter& w, const DispatchPlan& plan) {
  const int inner = columns_of(w), columns = rows_of(w);
  Tensor out = empty_rows(rows, plan, columns);
  kernels::grouped_forward(
      {groups_of(plan), pointer<bf16>(rows), index, pointer<bf16>(w.compute), pointer<bf16>(out), inner, columns},
      current_stream(rows));
  return out;
}

class HopperActivation : public FusedActivation {
 public:
  explicit HopperActivation(GroupedActivation activation)
      : activation_(activation), gated_(activation == GroupedActivation::kSwiglu) {}

  bool gathers() const override { return true; }
  Hidden up(const Tensor& x_TD, const Tensor& weight_R, const Parameter& w, const DispatchPlan& plan,
            bool keep) const override {
    const int inner = columns_of(w), columns = rows_of(w) / (gated_ ? 2 : 1);
    const Hidden hidden{keep && gated_ ? empty_rows(x_TD, plan, 2 * columns) : Tensor(),
                        empty_rows(x_TD, plan, columns), keep ? gathered_rows(x_TD, rows_of(w), plan) : Tensor()};
    kernels::grouped_forward({groups_of(plan), pointer<bf16>(x_TD), pointer<int>(plan.token_of_row_R),
                              pointer<bf16>(w.compute), pointer<bf16>(hidden.active_RN), inner, columns, activation_,
                              pointer<float>(weight_R), pointer<bf16>(hidden.pre), pointer<bf16>(hidden.rows_RD)},
                             current_stream(x_TD));
    return hidden;
  }
  // From what the activation leaves to read.
  Backward down_backward(const Tensor& dy_TD, const Parameter& w_EDN, const Hidden& hidden, const Tensor& weight_R,
                         const DispatchPlan& plan) const override {
    const int inner = rows_of(w_EDN), columns = columns_of(w_EDN);
    const Tensor& read = gated_ ? hidden.pre : hidden.active_RN;
    Backward out{at::empty_like(read), Tensor(), gathered_rows(dy_TD, columns, plan)};
    if (weight_R.defined())
      out.dot_PR = at::empty({kernels::grouped_dot_parts(columns), plan.row_capacity}, weight_R.options());
    kernels::grouped_dgrad(
        {groups_of(plan), pointer<bf16>(dy_TD), pointer<int>(plan.token_of_row_R), pointer<bf16>(w_EDN.compute),
         pointer<bf16>(out.d_pre), pointer<bf16>(read), pointer<float>(weight_R), pointer<float>(out.dot_PR), inner,
         columns, activation_, pointer<bf16>(out.dy_RD)},
        current_stream(dy_TD));
    return out;
  }

 private:
  const GroupedActivation activation_;
  const bool gated_;
};

}  // namespace

Tensor HopperProducts::forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const {
  return run_forward(rows_RD, nullptr, w_END, plan);
}

Tensor HopperProducts::gathered_forward(const Tensor& x_TD, const Parameter& w_END, const DispatchPlan& plan) const {
  return run_forward(x_TD, pointer<int>(plan.token_of_row_R), w_END, plan);
}

Tensor HopperProducts::dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const {
  const int inner = rows_of(w_END), columns = columns_of(w_END);
  Tensor out = empty_rows(d_RN, plan, columns);
  kernels::grouped_dgrad({groups_of(plan), pointer<bf16>(d_RN), nullptr, pointer<bf16>(w_END.compute),
                          pointer<bf16>(out), nullptr, nullptr, nullptr, inner, columns},
                         current_stream(d_RN));
  return out;
}

void HopperProducts::wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
                           const DispatchPlan& plan) const {
  kernels::grouped_wgrad({groups_of(plan), pointer<bf16>(d_RN), pointer<bf16>(rows_RD), pointer<float>(w_END.grad),
                          rows_of(w_END), columns_of(w_END)},
                         current_stream(d_RN));
}

void HopperProducts::gathered_wgrad(const Tensor& d, const Tensor& rows, Side by_tokens, const Parameter& w_END,
                                    const DispatchPlan& plan) const {
  const bool of_d = by_tokens == Side::kD;
  if ((of_d ? columns_of(w_END) : rows_of(w_END)) > kernels::kMostUnitsToGather)
    return GroupedProducts::gathered_wgrad(d, rows, by_tokens, w_END, plan);
  const int* index = plan.token_of_row_R.data_ptr<int>();
  kernels::grouped_wgrad({groups_of(plan), pointer<bf16>(d), pointer<bf16>(rows), pointer<float>(w_END.grad),
                          rows_of(w_END), columns_of(w_END), of_d ? index : nullptr, of_d ? nullptr : index},
                         current_stream(d));
}

const FusedActivation* HopperProducts::fused(ActivationKind kind) const {
  static const HopperActivation relu2(GroupedActivation::kRelu2), swiglu(GroupedActivation::kSwiglu);
  if (kind == ActivationKind::kRelu2) return &relu2;
  return kind == ActivationKind::kSwiglu ? &swiglu : nullptr;
}

int HopperProducts::alignment(std::int64_t assignments, int experts) const {
  return kernels::grouped_alignment(assignments, experts);
}

bool has_hopper_products(at::Device device, at::ScalarType dtype) {
  if (!device.is_cuda() || dtype != at::kBFloat16) return false;
  const cudaDeviceProp* device_properties = at::cuda::getDeviceProperties(device.index());
  return kernels::runs_hopper_kernels(device_properties->major, device_properties->minor);
}

}  // namespace switchyard::ops
