// What routing keeps from step to step besides weights: biases, and counts for them and for the log. A row a sparse
// layer, on the device. Tensors of what is off are undefined, and nothing is launched for them.
#pragma once

#include <functional>
#include <vector>

#include "config/config.h"
#include "model/moe/routing.h"
#include "ops/step_context.h"

namespace switchyard {

struct RoutingState {
  at::Tensor bias_LE;        // fp32: added to scores for the choice alone (moe_spec R12); undefined without balancing
  at::Tensor bias_count_LE;  // int64: assignments since the last step, of this rank
  at::Tensor last_step_LE;   // int64: the last step in which this rank sent the expert a token, -1: none (T3); with
                             // log.routing = layer
  at::Tensor dropped_L, to_null_L, rerouted_L;  // int64: diverted since the run began, of this rank; with capacities

  at::Tensor share_border;  // fp32 [E + 1], with router.force_spread: which experts a token is forced to (R15)

  at::Tensor bias_E(int row) const { return bias_LE.defined() ? bias_LE[row] : at::Tensor(); }

  void allocate(const Config& config, int layers, at::Device device);
  // Adds a micro-batch of training. count [L, E]: its assignments.
  void count(const std::vector<Routing>& layers, const at::Tensor& count_LE, const StepContext& step);
  // After a step: b += rate * sign(mean - count) where `apply` [1] is 1, counts summed over ranks (empty: one rank), in
  // integers; counts are zero afterwards either way. Wang et al. 2024.
  void update_bias(double rate, const at::Tensor& apply,
                   const std::function<at::Tensor(const at::Tensor&)>& sum_over_ranks);
};

}  // namespace switchyard
