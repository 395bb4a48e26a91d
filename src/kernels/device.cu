#include "kernels/cuda_check.h"
#include "kernels/device.h"

namespace switchyard::kernels {

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver or no device is an answer, not an error for later calls to find
    return 0;
  }
  return count;
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties;
  SWITCHYARD_CUDA(cudaGetDeviceProperties(&properties, device));
  return {properties.name, properties.multiProcessorCount, properties.major, properties.minor,
          static_cast<std::int64_t>(properties.totalGlobalMem)};
}

}  // namespace switchyard::kernels
