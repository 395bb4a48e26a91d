// WarmUp: the routed experts fade in over the first steps (moe_spec E12).
#pragma once

#include "config/config.h"
#include "model/moe/routing.h"
#include "ops/step_context.h"

namespace switchyard {

class WarmUp {
 public:
  explicit WarmUp(const MoeConfig& config) : config_(config) {}

  // m(s) = min(1, s / warmup_steps), fp32 [1], from the step on the device. Undefined without a warm-up, and where
  // dense_average is over; with blend it stays, so that a captured step holds for the whole run.
  at::Tensor fade(const StepContext& step) const;
  // Every expert runs, and their outputs are averaged: dense_average, until the last warm-up step. Decided by the host,
  // since such a step launches other kernels.
  bool averages(const StepContext& step) const { return averages_experts(config_, step.host_step); }
  // Each of E experts for each token of x, weighted 1 / E; none for padding (real_T as in StepContext).
  static Dispatched every_expert(const at::Tensor& x_TD, int experts, const at::Tensor& real_T);

 private:
  const MoeConfig config_;
};

}  // namespace switchyard
