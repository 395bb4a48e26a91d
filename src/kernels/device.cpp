#include "kernels/device.h"

#include <cstdlib>

#include "base/error.h"

namespace switchyard::kernels {
namespace {

struct Peak {
  const char* part_of_name;  // the first line whose text is in the device's name counts
  double bf16, fp8, fp32;
};

// Dense figures (the sheets often print twice as much, for structured sparsity). GeForce: with fp32 sums.
constexpr Peak kPeaks[] = {
    {"GB200", 2500, 5000, 80},
    {"B200", 2250, 4500, 75},
    {"B100", 1750, 3500, 60},
    {"GH200", 989.4, 1978.9, 66.9},
    {"H200 NVL", 835.5, 1670.9, 60.3},
    {"H200", 989.4, 1978.9, 66.9},
    {"H100 PCIe", 756.4, 1513, 51.2},
    {"H100 NVL", 835.5, 1670.9, 60.3},
    {"H100", 989.4, 1978.9, 66.9},
    {"H800", 989.4, 1978.9, 66.9},
    {"H20", 148, 296, 44},
    {"A100", 312, 0, 19.5},
    {"A800", 312, 0, 19.5},
    {"A30", 165, 0, 10.3},
    {"A40", 149.7, 0, 37.4},
    {"A10G", 70, 0, 35},
    {"A10", 125, 0, 31.2},
    {"L40S", 362, 733, 91.6},
    {"L40", 181, 362, 90.5},
    {"L4", 121, 242, 30.3},
    {"RTX 6000 Ada", 364.2, 728.5, 91.1},
    {"RTX A6000", 154.8, 0, 38.7},
    {"RTX 5090", 209.5, 419, 104.8},
    {"RTX 4090", 165.2, 330.3, 82.6},
    {"RTX 4080", 97.5, 194.9, 48.7},
    {"RTX 3090", 71, 0, 35.6},
    {"V100", 0, 0, 15.7},
    {"T4", 0, 0, 8.1},
};

}  // namespace

double peak_tflops(const std::string& device_name, PeakType type) {
  for (const Peak& peak : kPeaks) {
    if (device_name.find(peak.part_of_name) == std::string::npos) continue;
    return type == PeakType::kBf16 ? peak.bf16 : type == PeakType::kFp8 ? peak.fp8 : peak.fp32;
  }
  return 0;
}

bool portable_kernels_forced() {
  static const bool forced = [] {
    const char* value = std::getenv("SWITCHYARD_PORTABLE_KERNELS");
    return value && std::string(value) == "1";
  }();
  return forced;
}

bool runs_hopper_kernels(int capability_major, int capability_minor) {
#ifdef SWITCHYARD_HOPPER_KERNELS  // where compiled for anything but 90a, their bodies are empty
  return capability_major == 9 && capability_minor == 0 && !portable_kernels_forced();
#else
  (void)capability_major, (void)capability_minor;
  return false;
#endif
}

#ifndef SWITCHYARD_WITH_CUDA
int device_count() { return 0; }
DeviceInfo device_info(int) { throw RunError("this program was built without CUDA; configure it with -DWITH_CUDA=ON"); }
#endif

}  // namespace switchyard::kernels
