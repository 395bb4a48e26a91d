// Experts without products: null experts for what finds no place, and zero experts that the router may choose (moe_spec
// E8, E10). AdaMoE, Zeng et al. 2024; MoE++, Jin et al. 2024.
#pragma once

#include <vector>

#include "config/config.h"
#include "ops/layer.h"
#include "ops/placement.h"
#include "ops/zero_experts.h"

namespace switchyard {

// a1 x + a2 v, (a1, a2) = softmax(W x). W and v start at 0: half of x.
class ConstantExpert : public Layer {
 public:
  ConstantExpert(ParameterStore& store, const std::string& name, std::int64_t width);
  const Parameter& map() const { return map_2D_; }
  const Parameter& vector() const { return vector_D_; }

 private:
  const Parameter &map_2D_, &vector_D_;
};

class NullExperts : public Layer {
 public:
  // name: of the sparse layer. Router columns from n_experts on are zero, then copy, then constant experts.
  NullExperts(ParameterStore& store, const std::string& name, const Config& config);

  // Assignments to zero experts, and dropped ones where there is a null expert; none where they add 0 for every token.
  // placement.dropped_TK undefined: nothing was dropped.
  ops::ZeroExperts of(const ops::Placement& placement) const;

 private:
  std::string null_;  // what the null expert is; empty: there is none
  int first_copy_, first_constant_, end_;
  std::vector<std::shared_ptr<ConstantExpert>> constants_;  // of the columns; then the null expert if it is one
};

}  // namespace switchyard
