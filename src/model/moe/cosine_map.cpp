#include "model/moe/cosine_map.h"

#include <cmath>

#include "ops/router_scores.h"

namespace switchyard {
namespace {

constexpr double kNormFloor = 1e-6, kLargestScale = 100;

at::Tensor unit_rows(const at::Tensor& rows) {
  return rows / rows.norm(2, {1}, /*keepdim=*/true).clamp_min(kNormFloor);
}

}  // namespace

CosineMap::CosineMap(ParameterStore& store, const std::string& name, std::int64_t width, std::int64_t dim,
                     double scale_init)
    : Layer(name),
      project_(declare(store, "weight", ParameterKind::kRouter, {dim, width},
                       {Init::Kind::kUniform, 1 / std::sqrt(static_cast<double>(width))})),
      bias_(declare(store, "bias", ParameterKind::kRouterVector, {dim}, {Init::Kind::kConstant, 0})),
      log_scale_(declare(store, "log_scale", ParameterKind::kRouterVector, {1},
                         {Init::Kind::kConstant, std::log(scale_init)})) {}

at::Tensor CosineMap::logits(at::Tensor& x_TD, const Parameter& vectors) const {
  const ops::RouterLogits projected = ops::router_logits(x_TD, project_);
  x_TD = projected.x_TD;
  const at::Tensor direction = unit_rows(projected.logits_TE + attach(bias_));
  const at::Tensor cosine = at::mm(direction, unit_rows(attach(vectors)).t());
  return attach(log_scale_).exp().clamp_max(kLargestScale) * cosine;
}

}  // namespace switchyard
