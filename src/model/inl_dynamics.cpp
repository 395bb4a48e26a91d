#include "model/inl_dynamics.h"

#include <algorithm>
#include <cmath>

namespace switchyard {
namespace {

constexpr double kControllerDeviation = 0.01;

bool bounded(const InlConfig& inl) { return inl.mu_min != 0 || inl.mu_max != 0; }

ops::InlRule rule_of(const InlConfig& inl) {
  ops::InlRule rule;
  rule.dt = inl.dt, rule.beta_max = inl.beta_max, rule.velocity_max = inl.velocity_max;
  rule.alpha = inl.init_alpha, rule.beta = inl.init_beta, rule.gate = inl.init_gate;
  if (bounded(inl)) rule.mu_min = inl.mu_min, rule.mu_max = inl.mu_max;
  return rule;
}

// What sigmoid and softplus turn into the initial coefficients.
Init first_coefficients(const InlConfig& inl) {
  const auto logit = [](double p) { return std::log(p / (1 - p)); };
  return {Init::Kind::kPieces, 0, {logit(inl.init_alpha), std::log(std::expm1(inl.init_beta)), logit(inl.init_gate)}};
}

}  // namespace

InlDynamics::InlDynamics(ParameterStore& store, const std::string& name, const ModelConfig& model)
    : Layer(name),
      rule_(rule_of(model.inl)),
      mean_(declare(
          store, "mean", ParameterKind::kInlVector, {model.n_embd},
          {Init::Kind::kConstant, bounded(model.inl) ? std::clamp(0.0, model.inl.mu_min, model.inl.mu_max) : 0.0})) {
  if (model.inl.mode == "lite") return;
  const std::int64_t width = model.n_embd, hidden = model.inl.controller_hidden;
  const Init drawn{Init::Kind::kNormal, kControllerDeviation};
  controller_.in = &declare(store, "in.weight", ParameterKind::kInlController, {hidden, 2 * width}, drawn);
  controller_.in_bias = &declare(store, "in.bias", ParameterKind::kInlVector, {hidden}, {Init::Kind::kConstant, 0.0});
  controller_.out =
      &declare(store, "out.weight", ParameterKind::kInlController, {3 * width, hidden}, drawn, {width, width, width});
  controller_.out_bias =
      &declare(store, "out.bias", ParameterKind::kInlVector, {3 * width}, first_coefficients(model.inl));
}

}  // namespace switchyard
