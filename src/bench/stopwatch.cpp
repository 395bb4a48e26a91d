#include "bench/stopwatch.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace switchyard::bench {
namespace {

PassTimes time_on_cpu(const Passes& passes, int repeats, int warm_ups) {
  const auto now_ms = [] {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  std::vector<double> forward, backward;
  for (int i = 0; i < warm_ups; ++i) passes.backward(passes.forward());
  for (int i = 0; i < repeats; ++i) {
    const double begin = now_ms();
    const at::Tensor out = passes.forward();
    const double middle = now_ms();
    passes.backward(out);
    forward.push_back(middle - begin), backward.push_back(now_ms() - middle);
  }
  return {median(forward), median(backward)};
}

}  // namespace

double median(std::vector<double> values) {
  SWITCHYARD_ASSERT(!values.empty(), "the median of nothing");
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

#ifdef SWITCHYARD_WITH_CUDA
PassTimes time_on_gpu(const Passes& passes, int device, bool record, int repeats, int warm_ups, int runs_a_graph);
#else
double product_rate() {
  throw ConfigError("bench ops times CUDA kernels, and this build has none; run runs/setup.sh --cuda on a GPU machine");
}
#endif

PassTimes time_passes(const Passes& passes, [[maybe_unused]] int device, [[maybe_unused]] bool record, int repeats,
                      int warm_ups, [[maybe_unused]] int runs_a_graph) {
#ifdef SWITCHYARD_WITH_CUDA
  if (device >= 0) return time_on_gpu(passes, device, record, repeats, warm_ups, runs_a_graph);
#endif
  return time_on_cpu(passes, repeats, warm_ups);
}

}  // namespace switchyard::bench
