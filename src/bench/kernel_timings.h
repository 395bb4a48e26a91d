// bench/kernel_timings.h: our CUDA kernels, one after the other, each against its floor.
#pragma once

#include <string>
#include <vector>

namespace switchyard::bench {

struct KernelTiming {
  std::string name;
  double seconds, floor_seconds;  // floor: its bytes at the rate of a device copy, or its FLOPs at product_rate
  double work;                    // bytes that must cross memory once, or FLOPs
  bool product;                   // work is FLOPs
};

// Prints a line a kernel as it goes. product_rate: FLOP/s that a plain bf16 product reaches on this GPU. only: kernels
// whose name contains it, all where it is empty. ConfigError without a GPU, and in a build without CUDA.
std::vector<KernelTiming> time_kernels(double product_rate, const std::string& only);

}  // namespace switchyard::bench
