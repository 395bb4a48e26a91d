#include <c10/cuda/CUDAStream.h>

#include "ops/launch.h"

namespace switchyard::ops {

kernels::Stream current_stream(const Tensor& like) {
  return c10::cuda::getCurrentCUDAStream(like.get_device()).stream();
}

}  // namespace switchyard::ops
