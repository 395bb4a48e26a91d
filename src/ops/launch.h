// From tensors to kernels: the element type and the backend follow the tensor, CPU work is split over torch's threads.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <optional>

#include "base/error.h"
#include "kernels/types.h"

#ifndef _OPENMP
#error "compile with -fopenmp: without it at::parallel_for runs on one thread"
#endif

namespace switchyard::ops {

using at::Tensor;

template <class T>
struct Type {
  using type = T;
};

// torch's custom functions refuse an undefined tensor as an argument, but take an empty optional for it.
inline std::optional<Tensor> optional(const Tensor& tensor) {
  return tensor.defined() ? std::optional<Tensor>(tensor) : std::nullopt;
}

#ifdef SWITCHYARD_WITH_CUDA
kernels::Stream current_stream(const Tensor& like);

// Calls run(Type<T>{}) for the element type of a CUDA tensor.
template <class Run>
void with_type_of(const Tensor& x, Run run) {
  if (x.scalar_type() == at::kBFloat16) return run(Type<kernels::bf16>{});
  SWITCHYARD_ASSERT(x.scalar_type() == at::kFloat, "CUDA kernels take bf16 or fp32");
  run(Type<float>{});
}
#endif

// A tensor's data as the kernel's element type; null for an undefined tensor.
template <class T>
T* pointer(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

// Calls cuda(description, stream) or cpu(description) with description = describe(Type<T>{}) for like's element type.
template <class Describe, class Cuda, class Cpu>
void launch(const Tensor& like, Describe describe, [[maybe_unused]] Cuda cuda, Cpu cpu) {
  if (like.is_cuda()) {
#ifdef SWITCHYARD_WITH_CUDA
    return with_type_of(like, [&](auto type) { cuda(describe(type), current_stream(like)); });
#else
    SWITCHYARD_ASSERT(false, "a CUDA tensor in a build without CUDA");
#endif
  }
  if (like.scalar_type() == at::kDouble) return cpu(describe(Type<double>{}));
  SWITCHYARD_ASSERT(like.scalar_type() == at::kFloat, "CPU kernels take fp32 or fp64");
  cpu(describe(Type<float>{}));
}

// run(Range) over [0, count), split over threads in pieces of at least `grain`.
template <class Run>
void parallel_ranges(std::int64_t count, std::int64_t grain, Run run) {
  at::parallel_for(0, count, grain, [&](std::int64_t begin, std::int64_t end) { run(kernels::Range{begin, end}); });
}

}  // namespace switchyard::ops
