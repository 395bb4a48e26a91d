// Logits as scaled cosines: where a token points counts, how long it is does not (moe_spec R14). X-MoE, Chi et al.
// 2022, with the constants of Tutel's CosineTopKGate.
#pragma once

#include "ops/layer.h"

namespace switchyard {

// l_te = kappa cos(W_s x_t + b_s, w_e), kappa = min(exp(log_scale), 100), norms floored at 1e-6. The vectors w_e
// [E, dim] are the router's; this is what comes before and around them.
class CosineMap : public Layer {
 public:
  CosineMap(ParameterStore& store, const std::string& name, std::int64_t width, std::int64_t dim, double scale_init);

  // x [T, D] of any type -> [T, E] fp32 (fp64 in tests). x becomes what its other readers take (ops/gradient.h).
  at::Tensor logits(at::Tensor& x_TD, const Parameter& vectors) const;

 private:
  const Parameter &project_, &bias_, &log_scale_;
};

}  // namespace switchyard
