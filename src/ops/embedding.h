// ops/embedding.h: rows of a table by token.
#pragma once

#include "ops/parameter.h"

namespace switchyard::ops {

// Positions sorted by their token, for the backward of every table that the tokens look up; undefined on CPU, which
// needs none.
Tensor token_order(const Tensor& tokens_T);

// tokens [T] int64, each < V (checked when the data is opened, not here); table [V, D]; order: token_order(tokens).
// Returns [T, D]. The gradient is summed in fp32 into the table's slice, in a fixed order.
Tensor embedding(const Tensor& tokens_T, const Parameter& table_VD, const Tensor& order);

}  // namespace switchyard::ops
