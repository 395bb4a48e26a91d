// The sparse layer that stands where a dense MLP would: router, experts, shared experts, auxiliary losses.
#pragma once

#include "model/moe/experts.h"
#include "model/moe/router.h"

namespace switchyard {

struct MoeShape {
  std::int64_t width;
  int experts;
  ExpertShape routed;
  ExpertShape shared;  // hidden 0: none
};

struct MoeOutput {
  at::Tensor out_TD;
  Routing routing;  // the caller adds its losses to the total, except where they were injected (moe_spec E15)
};

class Moe : public Layer {
 public:
  Moe(ParameterStore& store, const std::string& name, const MoeShape& shape, const Config& config,
      const PrecisionPolicy& policy);
  const Parameter& router_weight() const { return router_->weight(); }
  // x [T, D] normalised input of the layer, logits [T, E] its product with router_weight().
  MoeOutput forward(const at::Tensor& x_TD, const at::Tensor& logits_TE, const StepContext& step) const;

 private:
  const RouterConfig router_config_;
  const bool inject_;
  std::shared_ptr<TopkRouter> router_;
  std::shared_ptr<Experts> experts_;
  std::shared_ptr<SharedExperts> shared_;
};

}  // namespace switchyard
