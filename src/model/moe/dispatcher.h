// Dispatcher: which assignments keep their place when experts have a capacity, and what becomes of the others
// (moe_spec E6, E7, E8, E10). GShard, Lepikhin et al. 2020. Without capacities every assignment keeps its place.
#pragma once

#include "model/moe/importance.h"
#include "model/moe/null_experts.h"
#include "model/moe/routing.h"
#include "ops/step_context.h"

namespace switchyard {

// Rows that an expert takes of a micro-batch of T tokens at step s, with C0 = ceil(factor T K / E):
//   clamp(C0, min, min + rho (max - min)), rho = min(1, s / ramp), rounded down; max unset: C0
// int32 [1] on the device of step.step, which is read there: the value moves in a captured step too.
at::Tensor expert_capacity(const Config& config, std::int64_t tokens, const StepContext& step);

class Dispatcher : public Layer {
 public:
  // name: of the sparse layer
  Dispatcher(ParameterStore& store, const std::string& name, const Config& config);

  // x [T, D] the layer's input, handed on for its other readers. Counts what it diverts in routing.diverted.
  Dispatched place(const at::Tensor& x_TD, Routing& routing, const StepContext& step) const;

 private:
  bool limited(const StepContext& step) const;
  // After capacities; weight is that of the assignments, and changes where one is rerouted or others are dropped.
  ops::Placement placed(Routing& routing, const at::Tensor& importance_T, at::Tensor& weight_TK,
                        const StepContext& step) const;
  ops::Rerouted rerouted(const ops::Placement& placement, const Routing& routing, const at::Tensor& scores_TE,
                         const at::Tensor& priority, const StepContext& step) const;

  const Config config_;
  std::shared_ptr<TokenImportance> importance_;  // null: none is asked for, or it would change nothing
  std::shared_ptr<NullExperts> null_;            // null: nothing is ever added beside the experts
};

}  // namespace switchyard
