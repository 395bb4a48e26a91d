// The one way CUDA calls are checked.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "base/error.h"

#define SWITCHYARD_CUDA(call)                                                                                          \
  do {                                                                                                                 \
    const cudaError_t status = (call);                                                                                 \
    if (status != cudaSuccess)                                                                                         \
      throw ::switchyard::RunError(std::string(#call " failed: ") + cudaGetErrorString(status) + " at " __FILE__ ":" + \
                                   std::to_string(__LINE__));                                                          \
  } while (false)
// After a kernel launch.
#define SWITCHYARD_CUDA_LAUNCHED() SWITCHYARD_CUDA(cudaGetLastError())
