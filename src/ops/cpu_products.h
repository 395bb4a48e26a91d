// ops/cpu_products.h: grouped products by our own kernels on the CPU, fp32 or fp64. All experts' products are cut into
// pieces together, so that threads stay busy whether experts are few, many or unevenly loaded.
#pragma once

#include "ops/grouped_products.h"

namespace switchyard::ops {

class CpuProducts : public GroupedProducts {
 public:
  Tensor forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const override;
  Tensor dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const override;
  void wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
             const DispatchPlan& plan) const override;
};

}  // namespace switchyard::ops
