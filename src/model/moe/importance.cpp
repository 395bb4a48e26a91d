#include "model/moe/importance.h"

namespace switchyard {

TokenImportance::TokenImportance(ParameterStore& store, const std::string& name, std::int64_t width, bool learned)
    : Layer(name) {
  if (!learned) return;
  weight_D_ = &declare(store, "weight", ParameterKind::kRouterVector, {width}, {Init::Kind::kConstant, 0});
  bias_ = &declare(store, "bias", ParameterKind::kRouterVector, {1}, {Init::Kind::kConstant, 0});
}

at::Tensor TokenImportance::of(const at::Tensor& x_TD) const {
  if (!weight_D_) return x_TD.detach().to(at::kFloat).square().sum(1).sqrt();
  const at::Tensor u = attach(*weight_D_);
  return at::mv(x_TD.to(u.scalar_type()), u) + attach(*bias_);
}

at::Tensor TokenImportance::weighted(const at::Tensor& weight_TK, const at::Tensor& importance_T) const {
  return weight_D_ ? weight_TK * (2 * at::sigmoid(importance_T)).unsqueeze(1) : weight_TK;
}

}  // namespace switchyard
