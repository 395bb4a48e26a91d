// ops/cpu_products.h: grouped products by our own kernels on the CPU, fp32 or fp64. All experts' products are cut into
// pieces together, so that threads stay busy whether experts are few, many or unevenly loaded.
#pragma once

#include "ops/grouped_products.h"

namespace switchyard::ops {

class CpuProducts : public GroupedProducts, private FusedExperts {
 public:
  Tensor forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const override;
  Tensor dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const override;
  void wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
             const DispatchPlan& plan) const override;
  const FusedExperts* whole() const override { return this; }

 private:
  Forward forward(const Tensor& x_TD, const Tensor& weight_R, const Parameter& up, const Parameter& down,
                  ActivationKind kind, const DispatchPlan& plan) const override;
  Backward backward(const Tensor& x_TD, const Tensor& dy_TD, const Tensor& pre_RN, const Tensor& weight_R,
                    const Parameter& up, const Parameter& down, ActivationKind kind,
                    const DispatchPlan& plan) const override;
};

}  // namespace switchyard::ops
