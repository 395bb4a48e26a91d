// bench/stopwatch.h: how long a differentiable piece of work takes on a device.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <vector>

namespace switchyard::bench {

struct Passes {
  std::function<at::Tensor()> forward;
  std::function<void(const at::Tensor&)> backward;  // of what forward gave
};
struct PassTimes {
  double forward_ms, backward_ms;
};

// Medians of `repeats` runs, after some that warm up. device: the GPU's index, whose current stream is timed, or -1 for
// a CPU. On a GPU backward is both passes in one less forward alone. record: passes are recorded as CUDA graphs and
// replayed, so that the host's pace does not count; they must then be capturable.
PassTimes time_passes(const Passes& passes, int device, bool record, int repeats);

double median(std::vector<double> values);  // at least one

// FLOP/s of a large bf16 product of random values by cuBLAS: what a product can be expected to reach. ConfigError
// without a GPU.
double product_rate();

}  // namespace switchyard::bench
