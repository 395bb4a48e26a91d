// TokenIdRouter: a token's number says who processes it; no parameters, equal weights, no auxiliary losses (moe_spec
// R1). Hash Layers, Roller et al. 2021.
#pragma once

#include "model/moe/router.h"

namespace switchyard {

class TokenIdRouter : public Router {
 public:
  TokenIdRouter(const std::string& name, const Config& config);

  // Reads step.token_T; of `in` only the device matters. The sums that losses are made of are 0.
  Routing route(RouterInput& in, const StepContext& step) const override;

 private:
  const int experts_, top_k_;
  const double weight_;  // of each of a token's experts
};

}  // namespace switchyard
