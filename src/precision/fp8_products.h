// fp8 products: values in e4m3, gradients in e5m2 or e4m3, scaled by their largest magnitude at every use (dynamic).
#pragma once

#include "config/config.h"
#include "ops/grouped_products.h"
#include "ops/linear.h"

namespace switchyard {

// The fp8 values of x and the fp32 factor that undoes their scaling: one for the tensor, or one a row of the last
// dimension. A tensor (row) of zeros, or without elements, gets factor 1.
struct Quantized {
  at::Tensor values, inverse_scale;
};
enum class ScaleOf { kTensor, kRow };
Quantized quantize(const at::Tensor& x, at::ScalarType fp8_type, ScaleOf scale_of);

// Tensorwise: all three products in fp8. Tokens that are no multiple of 16 fall back to the compute type.
class Fp8Linear : public ops::LinearProducts {
 public:
  explicit Fp8Linear(const PrecisionConfig& precision);
  at::Tensor forward(const at::Tensor& x_TD, const Parameter& w_ND) const override;
  at::Tensor dgrad(const at::Tensor& dy_TN, const Parameter& w_ND) const override;
  void dgrad_into(const at::Tensor& dx_TD, const at::Tensor& dy_TN, const Parameter& w_ND) const override;
  void wgrad(const at::Tensor& dy_TN, const at::Tensor& x_TD, const Parameter& w_ND) const override;

 private:
  at::ScalarType gradient_type_;
};

// Experts: rows and matrices scaled row by row in e4m3; weight gradients stay in bf16, where sums are long.
class Fp8Grouped : public ops::GroupedProducts {
 public:
  at::Tensor forward(const at::Tensor& rows_RD, const Parameter& w_END, const ops::DispatchPlan& plan) const override;
  at::Tensor dgrad(const at::Tensor& d_RN, const Parameter& w_END, const ops::DispatchPlan& plan) const override;
  void wgrad(const at::Tensor& d_RN, const at::Tensor& rows_RD, const Parameter& w_END,
             const ops::DispatchPlan& plan) const override;
  int alignment(std::int64_t assignments, int experts) const override;
};

}  // namespace switchyard
