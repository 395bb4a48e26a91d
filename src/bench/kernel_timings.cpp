#include "bench/kernel_timings.h"

#include "base/error.h"

namespace switchyard::bench {

#ifndef SWITCHYARD_WITH_CUDA
std::vector<KernelTiming> time_kernels(double, const std::string&) {
  throw ConfigError("bench ops times CUDA kernels, and this build has none; run runs/setup.sh --cuda on a GPU machine");
}
#endif

}  // namespace switchyard::bench
