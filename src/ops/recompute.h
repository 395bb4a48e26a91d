// ops/recompute.h: activations that backward computes again instead of keeping (Chen et al. 2016; moe_spec T4).
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <vector>

namespace switchyard::ops {

using at::Tensor;
using TensorFunction = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;

// run(inputs), of which only the inputs and outputs live until backward; backward calls run a second time. Gradients
// are bitwise those of a plain call where run's arithmetic repeats itself: random draws come from a counter generator,
// and what run reads beside its inputs is unchanged until backward.
//   inputs   any may be undefined; one tensor given twice is one tensor inside run too
//   outputs  any may be undefined, of an integer type or without a gradient
//   run      is copied and kept until backward, with everything it captures. Tensors that need a gradient must come in
//            as inputs; Parameters are read as always, and each use counts once.
// Without gradients to take (grad mode off, or no input that needs one) this is a plain call.
std::vector<Tensor> recompute(const std::vector<Tensor>& inputs, const TensorFunction& run);

// Inside the second call: what adds to counters or buffers has done so in the first.
bool is_recomputing();

}  // namespace switchyard::ops
