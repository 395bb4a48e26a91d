// The optimizer of a run: Muon for matrices, AdamW for the rest, over the slices this rank owns.
#pragma once

#include "optim/adamw.h"
#include "optim/muon.h"

namespace switchyard {

// Every parameter whole: what a single rank owns.
std::vector<OwnedSlice> whole_parameters(const ParameterStore& store);

class Optimizer {
 public:
  Optimizer(const std::vector<OwnedSlice>& slices, const Config& config);

  // Updates masters and their compute copies from the gradients. Reads everything that changes from `scalars`.
  void step(const StepScalars& scalars);
  // Zeroes what this rank keeps for the parameter.
  void forget(const Parameter& parameter);
  // All state of this rank's slices.
  std::vector<OptimizerState> states() const;

 private:
  std::unique_ptr<Muon> muon_;
  std::unique_ptr<AdamW> adamw_;
};

}  // namespace switchyard
