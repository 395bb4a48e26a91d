#include "optim/optimizer.h"

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace switchyard {
namespace {

std::int64_t elements_of(const std::vector<OwnedSlice>& slices) {
  std::int64_t elements = 0;
  for (const OwnedSlice& slice : slices) elements += slice.count;
  return elements;
}

// Above this many elements of AdamW's for one of Muon's, AdamW beside the products would outlast them by more than it
// saves: it takes twice as long there.
constexpr double kBesideAtMost = 1.25;

}  // namespace

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
  const bool shorter = static_cast<double>(elements_of(elements)) <= kBesideAtMost * elements_of(matrices);
  if (!elements.empty() && muon_->leaves_room() && shorter) {
    const at::Device device = elements[0].parameter->master.device();
    side_ = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
  }
}

void Optimizer::step(const StepScalars& scalars) {
  if (!side_) {
    muon_->step(scalars);
    adamw_->step(scalars);
    return;
  }
  const c10::Stream main = c10::impl::VirtualGuardImpl(side_->device_type()).getStream(side_->device());
  c10::Event ready(side_->device_type()), done(side_->device_type());
  muon_->step(scalars, [&] {
    ready.record(main);
    ready.block(*side_);
    const c10::StreamGuard guard(*side_);
    adamw_->step(scalars, /*beside=*/true);
    done.record(*side_);
  });
  done.block(main);
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
