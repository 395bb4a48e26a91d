// ops/portable_products.h: grouped products by our own kernels on any GPU from capability 8.0 on, in bf16 and fp32.
#pragma once

#include "ops/grouped_products.h"

namespace switchyard::ops {

// T: kernels::bf16, float, what the activations and the compute copies hold.
template <class T>
class PortableProducts : public GroupedProducts, private FusedActivation {
 public:
  Tensor forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const override;
  Tensor dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const override;
  void wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
             const DispatchPlan& plan) const override;
  Tensor gathered_forward(const Tensor& x_TD, const Parameter& w_END, const DispatchPlan& plan) const override;
  const FusedActivation* fused(ActivationKind kind) const override {
    return kind == ActivationKind::kRelu2 ? this : nullptr;
  }
  int alignment(std::int64_t assignments, int experts) const override;

 private:
  bool gathers() const override { return false; }
  Hidden up(const Tensor& x_TD, const Tensor& weight_R, const Parameter& w, const DispatchPlan& plan,
            bool keep) const override;
  Backward down_backward(const Tensor& dy_TD, const Parameter& w_EDN, const Hidden& hidden, const Tensor& weight_R,
                         const DispatchPlan& plan) const override;
};

// For bf16 or fp32, else an assertion.
const GroupedProducts& portable_products(at::ScalarType dtype);

}  // namespace switchyard::ops
