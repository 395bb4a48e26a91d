// ops/embedding.h: rows of a table by token.
#pragma once

#include "ops/parameter.h"

namespace switchyard::ops {

// tokens [T] int64, each < V (checked when the data is opened, not here); table [V, D]. Returns [T, D].
// The gradient is summed in fp32 into the table's slice: with atomics on CUDA, in order of position with
// `deterministic`.
Tensor embedding(const Tensor& tokens_T, const Parameter& table_VD, bool deterministic = false);

}  // namespace switchyard::ops
