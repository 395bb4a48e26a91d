// ops/placement.h: which assignments keep a place where experts take a limited number of rows, and where the others
// look for one (moe_spec E6-E8). Integers, no gradient; the capacity is a device value and nothing is read by the host.
#pragma once

#include <ATen/ATen.h>

namespace switchyard::ops {

using at::Tensor;

struct Placement {
  Tensor expert_TK;   // int32: the assignment's expert, -1 where it has no place
  Tensor dropped_TK;  // bool: assigned, without a place
  Tensor room_E;      // int32: places left
};

// Each of the experts 0 to E-1 keeps the first `capacity` of its assignments: by falling priority, equal ones by (k,
// t), so first choices before second ones (GShard, Lepikhin et al. 2020). Entries of -1 stay; those >= E have no limit.
// expert [T, K] int32, capacity [1] int32. priority: undefined (position), the weights [T, K] (V-MoE's batch
// prioritised routing, Riquelme et al. 2021) or an importance [T]; NaN counts as the smallest.
Placement place(const Tensor& expert_TK, int experts, const Tensor& capacity, const Tensor& priority = {});

struct Rerouted {
  Placement placement;  // dropped: still without a place
  Tensor moved_TK;      // bool: placed with another expert than the chosen one
};

// In each round every dropped assignment proposes to the best of its token's experts by `selection` that has room and
// is not in the token's set (its places, and what its earlier slots propose in this round); experts accept by the same
// priority up to their room. An expert in whose favour the score is -inf or NaN is never proposed to.
// selection [T, E]; equal scores go to the smallest (e - first_T) mod E, first_T [T] int32 or undefined (0).
Rerouted reroute(const Placement& placed, const Tensor& selection_TE, const Tensor& priority, int rounds,
                 const Tensor& first_T = {});

}  // namespace switchyard::ops
