// ops/inl.h: second-order dynamics of the residual stream after a block (moe_spec M8 and the end of 2.9).
#pragma once

#include <optional>

#include "ops/parameter.h"

namespace switchyard::ops {

// The controller that makes the coefficients; all null: they are the constants of InlRule.
struct InlController {
  const Parameter* in = nullptr;        // W_a [C, 2D]: D columns for h, then D for v
  const Parameter* in_bias = nullptr;   // b_a [C]
  const Parameter* out = nullptr;       // W_b [3D, C]: D rows for alpha, beta and gamma each
  const Parameter* out_bias = nullptr;  // b_b [3D]
};

struct InlRule {
  double dt = 0.1, beta_max = 2, velocity_max = 10;
  double alpha = 0.9, beta = 0.1, gate = 0.5;  // without a controller
  std::optional<double> mu_min, mu_max;        // mu is clamped to them where given
};

struct InlState {
  Tensor h_TD;
  Tensor v_TD;
};

// (a, b, g) = W_b silu(W_a [h; v] + b_a) + b_b;  alpha = sigmoid(a), beta = min(softplus(b), beta_max), gamma =
// sigmoid(g);  v' = clamp(alpha v - beta (h - mu), +-velocity_max);  h' = h + dt gamma v'.
// h [T, D] in the activations' type. v [T, D] in fp32 (fp64 in tests) or undefined, which is 0; v' is fp32: v is a
// running sum, and bf16 would lose a push beta (h - mu) below |v| / 512 once alpha has come near 1. mu [D].
// Backward keeps h, v and the controller's hidden layer before silu; the coefficients are made again. Clamped values
// have no gradient, but a mu beyond its bounds takes a gradient that leads back.
InlState inl(const InlState& in, const Parameter& mu_D, const InlController& controller, const InlRule& rule);

// The same in plain ATen, slow and obvious.
InlState inl_reference(const InlState& in, const Parameter& mu_D, const InlController& controller, const InlRule& rule);

}  // namespace switchyard::ops
