// kernels/device.h: what the layers above ask about a GPU, without torch. Also compiles, and finds no device, without
// CUDA.
#pragma once

#include <cstdint>
#include <string>

namespace switchyard::kernels {

struct DeviceInfo {
  std::string name;  // as the driver says it: "NVIDIA H100 80GB HBM3"
  int multiprocessors;
  int capability_major, capability_minor;
  std::int64_t memory_bytes;  // all of it, free or not
};

// 0 without CUDA, and where the driver finds no usable device.
int device_count();
// RunError for a device that is not there.
DeviceInfo device_info(int device);

// Whether the kernels made of Hopper's own instructions (wgmma, tensor maps) run on a GPU of this capability: 9.0
// alone, in a build that has 90a among its architectures, unless the portable ones are asked for.
bool runs_hopper_kernels(int capability_major, int capability_minor);
// SWITCHYARD_PORTABLE_KERNELS=1 in the environment, read once: the kernels of other GPUs, on a Hopper GPU too.
bool portable_kernels_forced();

enum class PeakType { kBf16, kFp8, kFp32 };

// Dense peak in TFLOP/s (10^12, a multiply-add is two) from the manufacturer's data sheets; bf16 and fp8 on the tensor
// cores with fp32 sums, fp32 outside them. 0: not in the table, or the GPU lacks the type.
double peak_tflops(const std::string& device_name, PeakType type);

}  // namespace switchyard::kernels
