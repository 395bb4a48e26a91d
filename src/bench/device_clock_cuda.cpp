#include <algorithm>
#include <array>
#include <cstdio>

#include "bench/device_clock.h"

namespace switchyard::bench {
namespace {

constexpr int kLaunches = 20, kReplays = 5;

}  // namespace

Clock::Clock(double product_rate, std::string only) : product_rate_(product_rate), only_(std::move(only)) {
  SWITCHYARD_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  SWITCHYARD_CUDA(cudaEventCreate(&begin_));
  SWITCHYARD_CUDA(cudaEventCreate(&end_));
  copy_rate_ = measure_copy_rate();
  std::printf("floors: a device copy moves %.0f GB/s, a bf16 product makes %.0f TFLOP/s\n", copy_rate_ * 1e-9,
              product_rate_ * 1e-12);
  std::printf("%-46s %10s %10s %8s %-8s %9s\n", "kernel", "us", "floor us", "rate", "", "of floor");
}

Clock::~Clock() {
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
  cudaStreamDestroy(stream_);
}

double Clock::measure_copy_rate() {
  constexpr std::size_t kBytes = std::size_t{1} << 29;  // long enough that the host's pace does not count
  const Buffer<char> from(kBytes), to(kBytes);
  return 2.0 * kBytes * kLaunches / seconds_between([&] {
           for (int i = 0; i < kLaunches; ++i)
             SWITCHYARD_CUDA(cudaMemcpyAsync(to.get(), from.get(), kBytes, cudaMemcpyDeviceToDevice, stream_));
         });
}

void Clock::measure(KernelTiming timing, const std::function<void(Stream)>& launch) {
  SWITCHYARD_CUDA(cudaDeviceSynchronize());            // buffers were filled through another stream
  if (!asks_for(timing.name)) return launch(stream_);  // later kernels may read its results
  timing.seconds = seconds_of(launch);
  keep(std::move(timing));
}

void Clock::keep(KernelTiming timing) {
  std::printf("%-46s %10.1f %10.1f %8.0f %-8s %8.0f%%\n", timing.name.c_str(), timing.seconds * 1e6,
              timing.floor_seconds * 1e6, timing.work / timing.seconds * (timing.product ? 1e-12 : 1e-9),
              timing.product ? "TFLOP/s" : "GB/s", 100 * timing.floor_seconds / timing.seconds);
  std::fflush(stdout);
  timings_.push_back(std::move(timing));
}

// A graph of launches: the host's pace does not count.
double Clock::seconds_of(const std::function<void(Stream)>& launch) {
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  for (int i = 0; i < 3; ++i) launch(stream_);
  SWITCHYARD_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kLaunches; ++i) launch(stream_);
  SWITCHYARD_CUDA(cudaStreamEndCapture(stream_, &graph));
  SWITCHYARD_CUDA(cudaGraphInstantiate(&ready, graph, 0));
  const double seconds = seconds_between([&] { SWITCHYARD_CUDA(cudaGraphLaunch(ready, stream_)); });
  SWITCHYARD_CUDA(cudaGraphExecDestroy(ready));
  SWITCHYARD_CUDA(cudaGraphDestroy(graph));
  return seconds / kLaunches;
}

// The median of some runs after one that warms up.
double Clock::seconds_between(const std::function<void()>& work) {
  std::array<float, kReplays> milliseconds{};
  work();
  for (float& ms : milliseconds) {
    SWITCHYARD_CUDA(cudaEventRecord(begin_, stream_));
    work();
    SWITCHYARD_CUDA(cudaEventRecord(end_, stream_));
    SWITCHYARD_CUDA(cudaEventSynchronize(end_));
    SWITCHYARD_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  return milliseconds[kReplays / 2] * 1e-3;
}

}  // namespace switchyard::bench
