// The sparse layer that stands where a dense MLP would: router, experts, shared experts, auxiliary losses.
#pragma once

#include "model/moe/dispatcher.h"
#include "model/moe/experts.h"
#include "model/moe/flexible_ffn.h"
#include "model/moe/router.h"
#include "model/moe/warm_up.h"

namespace switchyard {

struct MoeShape {
  ExpertShape routed;
  ExpertShape shared;  // hidden 0: none
  ExpertShape dense;   // of the flexible FFN; hidden 0: none
};

struct MoeOutput {
  ops::Addend out;  // [T, D]; the sum of its rows is left where it is the experts' alone
  Routing routing;  // the caller adds its losses to the total, except where they were injected (moe_spec E15)
};

class Moe : public Layer {
 public:
  Moe(ParameterStore& store, const std::string& name, const MoeShape& shape, const Config& config,
      const RouterPlace& place, const PrecisionPolicy& policy);
  // What the norm before the layer multiplies with, or null (Router::norm_weight).
  const Parameter* norm_weight() const { return router_->norm_weight(); }
  // The whole layer, in the order of moe_spec 2.9.
  MoeOutput forward(RouterInput in, const StepContext& step) const;

 private:
  // What stands beside the routed experts joins their sum. fade: WarmUp::fade where it is not in that sum already.
  ops::Addend joined(const ops::Addend& routed, const at::Tensor& x_TD, at::Tensor fade, const StepContext& step) const;

  const Config config_;
  const bool inject_;
  const WarmUp warm_up_;
  std::shared_ptr<Router> router_;
  std::shared_ptr<Dispatcher> dispatcher_;
  std::shared_ptr<Experts> experts_;
  std::shared_ptr<SharedExperts> shared_;
  std::shared_ptr<FlexibleFfn> flexible_;
};

}  // namespace switchyard
