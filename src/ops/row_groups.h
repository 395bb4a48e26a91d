// ops/row_groups.h: a dispatch plan and a stack of matrices as the grouped products' kernels take them.
#pragma once

#include "kernels/grouped_gemm.h"
#include "ops/dispatch_plan.h"
#include "ops/launch.h"
#include "ops/parameter.h"

namespace switchyard::ops {

inline kernels::RowGroups groups_of(const DispatchPlan& plan) {
  return {pointer<int>(plan.offset_E1),
          pointer<int>(plan.count_E),
          pointer<int>(plan.tile_expert),
          pointer<int>(plan.longest_first_E),
          pointer<int>(plan.scheduler),
          plan.experts,
          plan.alignment,
          plan.row_capacity};
}

// N and D of a stack [E, N, D], or of one matrix [N, D].
inline int rows_of(const Parameter& w) { return static_cast<int>(w.shape[w.shape.size() - 2]); }
inline int columns_of(const Parameter& w) { return static_cast<int>(w.shape.back()); }

}  // namespace switchyard::ops
