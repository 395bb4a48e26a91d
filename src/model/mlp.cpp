#include "model/mlp.h"

#include "model/init_rules.h"
#include "model/layer_rules.h"
#include "ops/fused_mlp.h"

namespace switchyard {

Mlp::Mlp(ParameterStore& store, const std::string& name, const Config& config, const PrecisionPolicy& policy)
    : Layer(name), activation_(ops::parse_activation(config.model.mlp)) {
  const std::int64_t width = config.model.n_embd, hidden = ffn_width(config.model);
  const std::vector<std::int64_t> split =
      ops::is_gated(activation_) ? std::vector<std::int64_t>{hidden, hidden} : std::vector<std::int64_t>{hidden};
  up_ = register_module("up", std::make_shared<Linear>(store, name + ".up", ParameterKind::kMlp,
                                                       hidden * static_cast<std::int64_t>(split.size()), width,
                                                       initial(Role::kInput, config.model), policy, split));
  down_ = register_module("down", std::make_shared<Linear>(store, name + ".down", ParameterKind::kMlp, width, hidden,
                                                           initial(Role::kOutput, config.model), policy));
}

at::Tensor Mlp::forward(const at::Tensor& x_TD, const StepContext& step) const {
  if (up_->plain(step) && down_->plain(step) && ops::has_fused_mlp(x_TD, activation_))
    return ops::fused_mlp(x_TD, up_->weight(), down_->weight(), activation_);
  return down_->forward(ops::activation(up_->forward(x_TD, step), activation_), step);
}

}  // namespace switchyard
