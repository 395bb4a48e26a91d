// INL dynamics: after each block, (h, v) -> (h', v') with a velocity that travels from block to block (moe_spec M8).
#pragma once

#include "config/config.h"
#include "ops/inl.h"
#include "ops/layer.h"

namespace switchyard {

// adaptive: alpha, beta and gamma of every token and channel from a small controller of h and v, which starts at
// init_alpha, init_beta and init_gate. lite: those three are constants. Both learn mu, from 0 or the nearest bound.
// 324 D + 64 parameters with the default controller_hidden of 64; D in lite.
class InlDynamics : public Layer {
 public:
  InlDynamics(ParameterStore& store, const std::string& name, const ModelConfig& model);
  // v undefined: 0. Shapes and types as in ops/inl.h.
  ops::InlState forward(const ops::InlState& in) const { return ops::inl(in, mean_, controller_, rule_); }

 private:
  const ops::InlRule rule_;
  Parameter& mean_;
  ops::InlController controller_;
};

}  // namespace switchyard
