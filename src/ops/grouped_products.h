// ops/grouped_products.h: products of rows in expert order with their expert's matrix.
#pragma once

#include "ops/dispatch_plan.h"
#include "ops/parameter.h"

namespace switchyard::ops {

// Rows [offset_e, offset_e+1) of a row tensor belong to expert e; weights are stacks [E, N, D]. Rows past the last
// offset are neither read nor defined; rows of padding must be zero on entry and are undefined in the result.
class GroupedProducts {
 public:
  virtual ~GroupedProducts() = default;
  virtual Tensor forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const = 0;  // [R, N]
  virtual Tensor dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const = 0;       // [R, D]
  // w.grad[e] += d_e^T rows_e; an expert without rows leaves its slice bitwise as it was.
  virtual void wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
                     const DispatchPlan& plan) const = 0;

  // The products for a device and type: torch's grouped product on GPUs of capability 9.0 in bf16 (no host read,
  // capturable); elsewhere one product an expert, with the offsets read by the host.
  static const GroupedProducts& choose(at::Device device, at::ScalarType dtype);
  static bool capturable(at::Device device, at::ScalarType dtype);
};

}  // namespace switchyard::ops
