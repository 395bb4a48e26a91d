#include "model/moe/flexible_ffn.h"

#include "ops/mix.h"

namespace switchyard {

FlexibleFfn::FlexibleFfn(ParameterStore& store, const std::string& name, const ExpertShape& dense, double first_mix,
                         const PrecisionPolicy& policy)
    : Layer(name),
      mix_(declare(store, "mix", ParameterKind::kMixScalar, {1}, {Init::Kind::kConstant, first_mix})),
      dense_(register_module(
          "dense", std::make_shared<SharedExperts>(store, name + ".dense", ParameterKind::kMlp, dense, policy))) {}

at::Tensor FlexibleFfn::forward(const at::Tensor& x_TD, const at::Tensor& moe_TD, const at::Tensor& fade,
                                const StepContext& step) const {
  at::Tensor share = at::sigmoid(attach(mix_));
  if (fade.defined()) share = fade * share;
  return ops::mix(moe_TD, dense_->forward(x_TD, step), share);
}

}  // namespace switchyard
