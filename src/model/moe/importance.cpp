#include "model/moe/importance.h"

#include "ops/router_scores.h"
#include "ops/row_norms.h"

namespace switchyard {

TokenImportance::TokenImportance(ParameterStore& store, const std::string& name, std::int64_t width, bool learned)
    : Layer(name) {
  if (!learned) return;
  weight_D_ = &declare(store, "weight", ParameterKind::kRouterVector, {width}, {Init::Kind::kConstant, 0});
  bias_ = &declare(store, "bias", ParameterKind::kRouterVector, {1}, {Init::Kind::kConstant, 0});
}

at::Tensor TokenImportance::of(at::Tensor& x_TD) const {
  if (!weight_D_) return ops::row_norms(x_TD.detach());
  const ops::RouterLogits logit = ops::router_logits(x_TD, *weight_D_);
  x_TD = logit.x_TD;
  return logit.logits_TE.squeeze(1) + attach(*bias_);
}

at::Tensor TokenImportance::weighted(const at::Tensor& weight_TK, const at::Tensor& importance_T) const {
  return weight_D_ ? weight_TK * (2 * at::sigmoid(importance_T)).unsqueeze(1) : weight_TK;
}

}  // namespace switchyard
