// ops/value_gate.h: the gates of the value embeddings, read from the first channels of attention's input.
#pragma once

#include "ops/parameter.h"

namespace switchyard::ops {

struct GatedInput {
  Tensor gate_TK;  // before the sigmoid
  Tensor n_TD;     // n itself, for its other readers: their gradient is added to in place (ops/gradient.h)
};

// gate = n[:, :C] W^T for n [T, D], W [K, C] with C at most D.
GatedInput value_gate(const Tensor& n_TD, const Parameter& w_KC);

}  // namespace switchyard::ops
