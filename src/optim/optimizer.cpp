#include "optim/optimizer.h"

namespace switchyard {

std::vector<OwnedSlice> whole_parameters(const ParameterStore& store) {
  std::vector<OwnedSlice> slices;
  for (const auto& parameter : store.all()) slices.push_back({parameter.get(), 0, parameter->count()});
  return slices;
}

Optimizer::Optimizer(const std::vector<OwnedSlice>& slices, const Config& config) {
  std::vector<OwnedSlice> matrices, elements;
  std::vector<GroupRule> rules;
  at::ScalarType product_dtype = at::kFloat;
  for (const OwnedSlice& slice : slices) {
    const GroupRule rule = group_rule(*slice.parameter, config);
    if (rule.muon) {
      matrices.push_back(slice);
      if (slice.parameter->compute.scalar_type() == at::kBFloat16) product_dtype = at::kBFloat16;
    } else {
      elements.push_back(slice);
      rules.push_back(rule);
    }
  }
  muon_ = std::make_unique<Muon>(matrices, config.optim.muon, product_dtype);
  adamw_ = std::make_unique<AdamW>(elements, rules, config.optim.adamw);
}

void Optimizer::step(const StepScalars& scalars) {
  muon_->step(scalars);
  adamw_->step(scalars);
}

void Optimizer::forget(const Parameter& parameter) {
  for (const OptimizerState& state : states())
    if (state.slice.parameter == &parameter) at::Tensor(state.values).zero_();
}

std::vector<OptimizerState> Optimizer::states() const {
  std::vector<OptimizerState> states = muon_->states();
  states.insert(states.end(), adamw_->states().begin(), adamw_->states().end());
  return states;
}

}  // namespace switchyard
