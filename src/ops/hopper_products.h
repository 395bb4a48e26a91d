// ops/hopper_products.h: grouped products by our own kernels on GPUs of capability 9.0, in bf16.
#pragma once

#include "ops/grouped_products.h"

namespace switchyard::ops {

class HopperProducts : public GroupedProducts {
 public:
  Tensor forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const override;
  Tensor dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const override;
  void wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
             const DispatchPlan& plan) const override;
  void gathered_wgrad(const Tensor& d, const Tensor& rows, Side by_tokens, const Parameter& w_END,
                      const DispatchPlan& plan) const override;
  Tensor gathered_forward(const Tensor& x_TD, const Parameter& w_END, const DispatchPlan& plan) const override;
  const FusedActivation* fused(ActivationKind kind) const override;
  int alignment(std::int64_t assignments, int experts) const override;
  bool match_library() const override { return true; }
};

// On GPUs of capability 9.0, in bf16, where this build has the kernels and SWITCHYARD_PORTABLE_KERNELS does not rule.
bool has_hopper_products(at::Device device, at::ScalarType dtype);

}  // namespace switchyard::ops
