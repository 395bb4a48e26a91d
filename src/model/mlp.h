// The dense MLP: down(act(up(x))).
#pragma once

#include "config/config.h"
#include "ops/activation.h"
#include "precision/linear.h"

namespace switchyard {

class Mlp : public Layer {
 public:
  Mlp(ParameterStore& store, const std::string& name, const Config& config, const PrecisionPolicy& policy);
  at::Tensor forward(const at::Tensor& x_TD, const StepContext& step) const;

 private:
  const ops::ActivationKind activation_;
  std::shared_ptr<Linear> up_, down_;
};

}  // namespace switchyard
