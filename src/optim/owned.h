// The part of a parameter that this rank updates, and the state it keeps for it.
#pragma once

#include <string>
#include <vector>

#include "ops/parameter.h"

namespace switchyard {

// Muon slices hold whole matrices: all of a parameter, or of an expert stack whole experts.
struct OwnedSlice {
  const Parameter* parameter = nullptr;
  std::int64_t begin = 0, count = 0;  // elements from the parameter's start
};

// A state tensor of a slice: flat, fp32, as long as the slice. Checkpoints join the slices of all ranks by name.
struct OptimizerState {
  std::string kind;  // first, second
  OwnedSlice slice;
  at::Tensor values;
};

}  // namespace switchyard
