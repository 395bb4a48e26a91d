// What routing keeps from step to step besides weights: biases, and counts for them. A row a sparse layer, on the
// device.
#pragma once

#include <ATen/ATen.h>

namespace switchyard {

struct RoutingState {
  at::Tensor bias_LE;        // fp32: added to scores for the choice alone (moe_spec R12); undefined without balancing
  at::Tensor bias_count_LE;  // int64: assignments since the last applied step, of this rank

  at::Tensor bias_E(int row) const { return bias_LE.defined() ? bias_LE[row] : at::Tensor(); }
};

}  // namespace switchyard
