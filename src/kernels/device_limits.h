// kernels/device_limits.h: what a launch asks of the current device. Host code.
#pragma once

#include "kernels/cuda_check.h"

namespace switchyard::kernels {

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  SWITCHYARD_CUDA(cudaGetDevice(&device));
  SWITCHYARD_CUDA(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// Bytes that a block may have: 227 KB on Hopper, 163 on A100, 99 on GeForce cards and their like.
inline int most_shared_memory() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

}  // namespace switchyard::kernels
