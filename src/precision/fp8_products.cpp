#include "precision/fp8_products.h"

namespace switchyard {
namespace {

constexpr at::ScalarType kValueType = at::kFloat8_e4m3fn;

double largest(at::ScalarType type) { return type == at::kFloat8_e5m2 ? 57344.0 : 448.0; }

at::Tensor column_major(const at::Tensor& x) { return x.t().contiguous().t(); }

at::Tensor product(const Quantized& a, const at::Tensor& b_values, const at::Tensor& b_inverse, at::ScalarType out,
                   bool fast) {
  return at::_scaled_mm(a.values, b_values, a.inverse_scale, b_inverse, {}, {}, out, fast);
}

bool aligned(const at::Tensor& x) { return x.size(0) % 16 == 0; }

}  // namespace

Quantized quantize(const at::Tensor& x, at::ScalarType fp8_type, ScaleOf scale_of) {
  const double limit = largest(fp8_type);
  if (x.numel() == 0) return {x.to(fp8_type), at::ones({}, x.options().dtype(at::kFloat))};
  const at::Tensor magnitude = x.abs();
  const at::Tensor amax = (scale_of == ScaleOf::kTensor ? magnitude.amax() : magnitude.amax(-1, true)).to(at::kFloat);
  const at::Tensor scale = at::where(amax > 0, limit / amax, at::ones_like(amax));
  const at::Tensor values = (x.to(at::kFloat) * scale).clamp(-limit, limit).to(fp8_type);
  const at::Tensor inverse = scale.reciprocal();
  return {values, scale_of == ScaleOf::kTensor ? inverse : inverse.squeeze(-1)};
}

Fp8Linear::Fp8Linear(const PrecisionConfig& precision)
    : gradient_type_(precision.fp8_gradient == "e4m3" ? at::kFloat8_e4m3fn : at::kFloat8_e5m2) {}

at::Tensor Fp8Linear::forward(const at::Tensor& x_TD, const Parameter& w_ND) const {
  if (!aligned(x_TD)) return LinearProducts::forward(x_TD, w_ND);
  const Quantized x = quantize(x_TD, kValueType, ScaleOf::kTensor),
                  w = quantize(w_ND.compute.detach(), kValueType, ScaleOf::kTensor);
  return product(x, w.values.t(), w.inverse_scale, x_TD.scalar_type(), /*fast=*/true);
}

at::Tensor Fp8Linear::dgrad(const at::Tensor& dy_TN, const Parameter& w_ND) const {
  if (!aligned(dy_TN)) return LinearProducts::dgrad(dy_TN, w_ND);
  const Quantized dy = quantize(dy_TN, gradient_type_, ScaleOf::kTensor),
                  w = quantize(w_ND.compute.detach(), kValueType, ScaleOf::kTensor);
  return product(dy, column_major(w.values), w.inverse_scale, dy_TN.scalar_type(), /*fast=*/true);
}

void Fp8Linear::dgrad_into(const at::Tensor& dx_TD, const at::Tensor& dy_TN, const Parameter& w_ND) const {
  dx_TD.copy_(dgrad(dy_TN, w_ND));
}

void Fp8Linear::wgrad(const at::Tensor& dy_TN, const at::Tensor& x_TD, const Parameter& w_ND) const {
  if (!aligned(dy_TN)) return LinearProducts::wgrad(dy_TN, x_TD, w_ND);
  const Quantized dy = quantize(dy_TN, gradient_type_, ScaleOf::kTensor),
                  x = quantize(x_TD, kValueType, ScaleOf::kTensor);
  const Quantized transposed{dy.values.t().contiguous(), dy.inverse_scale};
  at::Tensor grad = w_ND.grad;
  // Sums run over all tokens: slow accumulation keeps their low bits.
  grad.add_(product(transposed, column_major(x.values), x.inverse_scale, at::kFloat, /*fast=*/false));
}

at::Tensor Fp8Grouped::forward(const at::Tensor& rows_RD, const Parameter& w_END, const ops::DispatchPlan& plan) const {
  const Quantized rows = quantize(rows_RD, kValueType, ScaleOf::kRow),
                  w = quantize(w_END.compute.detach(), kValueType, ScaleOf::kRow);
  return at::_scaled_grouped_mm(rows.values, w.values.transpose(1, 2), rows.inverse_scale, w.inverse_scale, plan.end_E,
                                {}, {}, rows_RD.scalar_type(), /*use_fast_accum=*/true);
}

at::Tensor Fp8Grouped::dgrad(const at::Tensor& d_RN, const Parameter& w_END, const ops::DispatchPlan& plan) const {
  const Quantized d = quantize(d_RN, kValueType, ScaleOf::kRow);
  const Quantized w = quantize(w_END.compute.detach().transpose(1, 2).contiguous(), kValueType, ScaleOf::kRow);
  return at::_scaled_grouped_mm(d.values, w.values.transpose(1, 2), d.inverse_scale, w.inverse_scale, plan.end_E, {},
                                {}, d_RN.scalar_type(), /*use_fast_accum=*/true);
}

void Fp8Grouped::wgrad(const at::Tensor& d_RN, const at::Tensor& rows_RD, const Parameter& w_END,
                       const ops::DispatchPlan& plan) const {
  ops::GroupedProducts::choose(rows_RD.device(), rows_RD.scalar_type()).wgrad(d_RN, rows_RD, w_END, plan);
}

int Fp8Grouped::alignment(std::int64_t assignments, int experts) const {
  return ops::GroupedProducts::choose(at::kCUDA, at::kBFloat16).alignment(assignments, experts);
}

}  // namespace switchyard
