// FlexibleFfn: a dense MLP beside the experts, and the learned share in which the two are mixed (moe_spec E11).
#pragma once

#include "model/moe/experts.h"

namespace switchyard {

class FlexibleFfn : public Layer {
 public:
  // name: of the sparse layer, whose parameters <name>.dense.up.weight, <name>.dense.down.weight and <name>.mix are.
  FlexibleFfn(ParameterStore& store, const std::string& name, const ExpertShape& dense, double first_mix,
              const PrecisionPolicy& policy);

  // share * moe + (1 - share) * FFN(x) with share = fade * sigmoid(mix), fp32. x, moe [T, D]; fade [1] fp32, or
  // undefined, which is 1.
  at::Tensor forward(const at::Tensor& x_TD, const at::Tensor& moe_TD, const at::Tensor& fade,
                     const StepContext& step) const;

 private:
  const Parameter& mix_;
  std::shared_ptr<SharedExperts> dense_;
};

}  // namespace switchyard
