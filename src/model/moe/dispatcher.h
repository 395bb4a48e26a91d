// Dispatcher: which assignments keep their place when experts have a capacity, and what becomes of the others
// (moe_spec E6, E7, E8, E10). GShard, Lepikhin et al. 2020. Without capacities every assignment keeps its place.
#pragma once

#include "model/moe/routing.h"
#include "ops/layer.h"
#include "ops/step_context.h"

namespace switchyard {

class Dispatcher : public Layer {
 public:
  explicit Dispatcher(const std::string& name) : Layer(name) {}

  // x [T, D] the layer's input. Counts what it diverts in routing.diverted.
  Dispatched place(const at::Tensor& x_TD, Routing& routing, const StepContext& step) const;
};

}  // namespace switchyard
