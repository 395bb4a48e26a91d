// AdamW over slices of many parameters, in one launch (kernels/adamw.h).
#pragma once

#include <vector>

#include "config/config.h"
#include "kernels/adamw.h"
#include "optim/owned.h"
#include "optim/parameter_groups.h"
#include "optim/step_scalars.h"

namespace switchyard {

class AdamW {
 public:
  // rules: one a slice. All masters on one device, fp32.
  AdamW(const std::vector<OwnedSlice>& slices, const std::vector<GroupRule>& rules, const AdamwConfig& config);

  // One update from gradients times scalars.grad_factor; nothing is stored while scalars.apply is 0.
  void step(const StepScalars& scalars);
  const std::vector<OptimizerState>& states() const { return states_; }

 private:
  const AdamwConfig config_;
  std::vector<OptimizerState> states_;
  std::vector<kernels::AdamwTensor> tensors_;
  at::Tensor device_tensors_;  // the same list in device memory (GPU)
  bool on_gpu_ = false;
  std::int64_t largest_ = 0;
};

}  // namespace switchyard
