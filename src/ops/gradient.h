// ops/gradient.h: when backward may write into a gradient that autograd hands it.
//
// An op that is one of several readers of x can return x itself as one more output, for the others to read. Their
// gradient then arrives in its backward, which adds its own part in place; autograd, which would write a sum of [T, D]
// with a kernel of its own, has nothing left to add.
//
// Writing in place is right only where nobody else will read the buffer. A function may return one tensor as the
// gradient of two inputs (add_norm does: x and delta), pass on the one that it was given (a sum does), or return one
// that is saved. All of that shows in the counts of references: autograd moves a gradient to its only reader, so one
// reference to the tensor and one tensor on the storage say that it is ours.
#pragma once

#include <ATen/ATen.h>

namespace switchyard::ops {

// `grad` must be the element of the list given to backward: a copy of it counts as another reader.
inline bool is_ours(const at::Tensor& grad) {
  return grad.use_count() == 1 && grad.storage().use_count() == 1 && grad.is_contiguous();
}

// A buffer that holds grad and may be added to: grad itself where it is ours, else a copy; zeros where it is undefined.
inline at::Tensor own_gradient(const at::Tensor& grad, const at::Tensor& like) {
  if (!grad.defined()) return at::zeros_like(like);
  return is_ours(grad) ? grad : grad.clone(at::MemoryFormat::Contiguous);
}

}  // namespace switchyard::ops
