// ops/overflow.h: what becomes of the weights of assignments that no routed expert computes (moe_spec E8, E10). Plain
// ATen on [T, K]: differentiable, nothing is read by the host.
#pragma once

#include <ATen/ATen.h>

#include "ops/placement.h"

namespace switchyard::ops {

// Weights after rerouting: a token of whose assignments one moved weighs its experts by their scores (s / (sum s +
// 1e-20) if normalize, which a single choice skips) times scale; an assignment still dropped counts with the expert it
// chose, so that a normalised token's weights sum to scale. Other tokens keep `weight` bitwise.
// weight [T, K], chosen [T, K] int32, score [T, E'] with every column that `chosen` names.
Tensor rerouted_weight(const Tensor& weight_TK, const Tensor& score_TE, const Tensor& chosen_TK,
                       const Rerouted& rerouted, bool normalize, double scale);

// The surviving weights of a token, rescaled to the sum of all its weights; dropped ones stay as they are. A token that
// lost nothing, or whose survivors sum to 0, is unchanged.
Tensor renormalized_after_drop(const Tensor& weight_TK, const Tensor& dropped_TK);

// The experts that the grouped products compute: -1 for assignments to zero experts (>= experts), and for those without
// a place, or `null_index` where dropped ones have an expert of their own (null_expert = ffn).
Tensor computed_experts(const Placement& placement, int experts, int null_index = -1);

}  // namespace switchyard::ops
