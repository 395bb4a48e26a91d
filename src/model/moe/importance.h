// TokenImportance: who keeps a place in a full expert and, learned, how much a token's experts weigh (moe_spec E9).
#pragma once

#include "ops/layer.h"

namespace switchyard {

class TokenImportance : public Layer {
 public:
  // Declares weight [D] and bias [1] when learned, both 0 at first: then nothing is scaled.
  TokenImportance(ParameterStore& store, const std::string& name, std::int64_t width, bool learned);

  // norm: the length of x_t. learned: u x_t + b in fp32, differentiable. [T]; x becomes what its other readers take
  // (ops/gradient.h).
  at::Tensor of(at::Tensor& x_TD) const;
  // weight * 2 sigmoid(importance) when learned: sorting gives u no gradient, this does. Otherwise weight itself.
  at::Tensor weighted(const at::Tensor& weight_TK, const at::Tensor& importance_T) const;

 private:
  const Parameter *weight_D_ = nullptr, *bias_ = nullptr;  // null: norm
};

}  // namespace switchyard
