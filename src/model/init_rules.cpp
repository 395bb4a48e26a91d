#include "model/init_rules.h"

#include <cmath>

namespace switchyard {
namespace {

Init constant(double value) { return {Init::Kind::kConstant, value}; }
Init normal(double deviation) { return {Init::Kind::kNormal, deviation}; }
// Variance 1/D, as N(0, 1/D) has, without its tails.
Init uniform_of_width(int width) { return {Init::Kind::kUniform, std::sqrt(3.0 / width)}; }

}  // namespace

Init initial(Role role, const ModelConfig& model) {
  if (model.init == "llama") {
    if (role == Role::kValueGate) return constant(0);
    return normal(role == Role::kOutput ? model.init_std / std::sqrt(2.0 * model.n_layer) : model.init_std);
  }
  switch (role) {
    case Role::kTokenEmbedding:
      return normal(1.0);
    case Role::kHead:
      return normal(0.001);
    case Role::kValueEmbedding:
    case Role::kInput:
      return uniform_of_width(model.n_embd);
    case Role::kValueGate:
    case Role::kOutput:
      break;
  }
  return constant(0);
}

Init initial_expert(Role role, const Config& config) {
  if (config.moe.init == "normal") return normal(config.moe.init_std);
  return role == Role::kOutput ? constant(0) : uniform_of_width(config.model.n_embd);
}

}  // namespace switchyard
