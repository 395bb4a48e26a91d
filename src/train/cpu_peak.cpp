#include "train/cpu_peak.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>

namespace switchyard {

double measure_cpu_gemm_tflops() {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  constexpr std::int64_t kSize = 1024;
  constexpr double kBudget_s = 0.2;
  constexpr double kFlops = 2.0 * kSize * kSize * kSize;
  const at::NoGradGuard no_grad;
  const at::Tensor a = at::ones({kSize, kSize}, at::kFloat), b = at::ones({kSize, kSize}, at::kFloat);
  at::Tensor out = at::empty({kSize, kSize}, at::kFloat);
  at::mm_out(out, a, b);  // threads and packing buffers come up
  double best = 0;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    at::mm_out(out, a, b);
    best = std::max(best, kFlops / seconds_since(start));
  } while (seconds_since(begin) < kBudget_s);
  return best / 1e12;
}

}  // namespace switchyard
