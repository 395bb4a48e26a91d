#include <ATen/cuda/CUDAContext.h>

#include "kernels/grouped_gemm.h"
#include "ops/hopper_products.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using kernels::bf16;

kernels::RowGroups groups_of(const DispatchPlan& plan) {
  return {pointer<int>(plan.offset_E1),
          pointer<int>(plan.count_E),
          pointer<int>(plan.tile_expert),
          pointer<int>(plan.longest_first_E),
          pointer<int>(plan.scheduler),
          plan.experts,
          plan.alignment,
          plan.row_capacity};
}

// N and D of a stack [E, N, D], or of one matrix [N, D].
int rows_of(const Parameter& w) { return static_cast<int>(w.shape[w.shape.size() - 2]); }
int columns_of(const Parameter& w) { return static_cast<int>(w.shape.back()); }

Tensor run_forward(const Tensor& rows, const int* index, const Parameter& w, const DispatchPlan& plan, bool relu2) {
  const int inner = columns_of(w), columns = rows_of(w);
  Tensor out = at::empty({plan.row_capacity, columns}, rows.options());
  kernels::grouped_forward({groups_of(plan), pointer<bf16>(rows), index, pointer<bf16>(w.compute), pointer<bf16>(out),
                            inner, columns, relu2},
                           current_stream(rows));
  return out;
}

class HopperRelu2 : public FusedRelu2 {
 public:
  Tensor up(const Tensor& x_TD, const Parameter& w_END, const DispatchPlan& plan) const override {
    return run_forward(x_TD, pointer<int>(plan.token_of_row_R), w_END, plan, true);
  }
  Backward down_backward(const Tensor& dy_TD, const Parameter& w_EDN, const Tensor& active_RN, const Tensor& weight_R,
                         const DispatchPlan& plan) const override {
    const int inner = rows_of(w_EDN), columns = columns_of(w_EDN);
    Backward out{at::empty({plan.row_capacity, columns}, dy_TD.options()), Tensor()};
    if (weight_R.defined())
      out.dot_PR = at::empty({kernels::grouped_dot_parts(columns), plan.row_capacity}, weight_R.options());
    kernels::grouped_dgrad({groups_of(plan), pointer<bf16>(dy_TD), pointer<int>(plan.token_of_row_R),
                            pointer<bf16>(w_EDN.compute), pointer<bf16>(out.d_pre_RN), pointer<bf16>(active_RN),
                            pointer<float>(weight_R), pointer<float>(out.dot_PR), inner, columns},
                           current_stream(dy_TD));
    return out;
  }
};

}  // namespace

Tensor HopperProducts::forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const {
  return run_forward(rows_RD, nullptr, w_END, plan, false);
}

Tensor HopperProducts::gathered_forward(const Tensor& x_TD, const Parameter& w_END, const DispatchPlan& plan) const {
  return run_forward(x_TD, pointer<int>(plan.token_of_row_R), w_END, plan, false);
}

Tensor HopperProducts::dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const {
  const int inner = rows_of(w_END), columns = columns_of(w_END);
  Tensor out = at::empty({plan.row_capacity, columns}, d_RN.options());
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

const FusedRelu2* HopperProducts::relu2() const {
  static const HopperRelu2 fused;
  return &fused;
}

int HopperProducts::alignment(std::int64_t assignments, int experts) const {
  return kernels::grouped_alignment(assignments, experts);
}

bool has_hopper_products(at::Device device, at::ScalarType dtype) {
  if (!device.is_cuda() || dtype != at::kBFloat16) return false;
  const cudaDeviceProp* device_properties = at::cuda::getDeviceProperties(device.index());
  return kernels::grouped_gemm_supported(device_properties->major, device_properties->minor);
}

}  // namespace switchyard::ops
