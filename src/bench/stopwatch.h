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
  double both_ms() const { return forward_ms + backward_ms; }
};

// Medians of `repeats` runs, after `warm_ups` more. device: the GPU's index, whose current stream is timed, or -1 for
// a CPU. On a GPU, warm after half a second of it, forward alone and both passes in one run in turn, since a card's
// clock falls as it gets warm; backward is the difference of both medians. record: passes are recorded as CUDA graphs
// and replayed, so that the host's pace does not count; they must then be capturable. runs_a_graph: of short passes so
// many stand in one graph, since a graph's own start takes microseconds.
PassTimes time_passes(const Passes& passes, int device, bool record, int repeats, int warm_ups = 3,
                      int runs_a_graph = 1);

double median(std::vector<double> values);  // at least one

// FLOP/s of a large bf16 product of random values by cuBLAS: what a product can be expected to reach. ConfigError
// without a GPU.
double product_rate();

}  // namespace switchyard::bench
