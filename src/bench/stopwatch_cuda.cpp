#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include "base/error.h"
#include "bench/stopwatch.h"
#include "kernels/cuda_check.h"

namespace switchyard::bench {
namespace {

struct Event {
  cudaEvent_t event{};
  Event() { SWITCHYARD_CUDA(cudaEventCreate(&event)); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
};

// Records `work`. Where it throws, the stream is left as it was: able to do other work.
void capture(at::cuda::CUDAGraph& graph, const std::function<void()>& work) {
  graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
  try {
    work();
  } catch (...) {
    try {
      graph.capture_end();
    } catch (const c10::Error&) {}  // what work() broke off; its own error is the one to tell
    throw;
  }
  graph.capture_end();
}

// Milliseconds of each run, or of each graph of runs_a_graph runs over their number.
std::vector<double> time_runs(const std::function<void()>& work, int device, bool record, int repeats, int warm_ups,
                              int runs_a_graph = 1) {
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device));
  for (int i = 0; i < warm_ups; ++i) work();
  stream.synchronize();
  // A pool whose graph is gone is freed by this alone, and never while another is recorded; what the warm-ups held is
  // room for the graph's own pool.
  if (record) c10::cuda::CUDACachingAllocator::emptyCache();
  at::cuda::CUDAGraph graph;
  const int runs = record ? runs_a_graph : 1;
  if (record)
    capture(graph, [&] {
      for (int i = 0; i < runs; ++i) work();
    });
  const auto run = [&] { record ? graph.replay() : work(); };
  for (int i = 0; i < warm_ups; ++i) run();
  std::vector<Event> marks(static_cast<std::size_t>(repeats) + 1);
  SWITCHYARD_CUDA(cudaEventRecord(marks[0].event, stream));
  for (std::size_t i = 1; i < marks.size(); ++i) {
    run();
    SWITCHYARD_CUDA(cudaEventRecord(marks[i].event, stream));
  }
  stream.synchronize();
  std::vector<double> milliseconds;
  for (std::size_t i = 1; i < marks.size(); ++i) {
    float ms = 0;
    SWITCHYARD_CUDA(cudaEventElapsedTime(&ms, marks[i - 1].event, marks[i].event));
    milliseconds.push_back(ms / static_cast<float>(runs));
  }
  return milliseconds;
}

}  // namespace

PassTimes time_on_gpu(const Passes& passes, int device, bool record, int repeats, int warm_ups, int runs_a_graph) {
  const auto time = [&](const std::function<void()>& work) {
    return median(time_runs(work, device, record, repeats, warm_ups, runs_a_graph));
  };
  const double forward = time([&] { passes.forward(); });
  return {forward, time([&] { passes.backward(passes.forward()); }) - forward};
}

double product_rate() {
  if (c10::cuda::device_count() == 0) throw ConfigError("bench ops times CUDA kernels, and no GPU is visible here");
  constexpr std::int64_t kSize = 8192;
  const auto draw = [] {
    return at::randn({kSize, kSize}, at::TensorOptions().device(at::kCUDA).dtype(at::kBFloat16));
  };
  at::Tensor a = draw(), b = draw(), out = at::empty_like(a);
  const double ms = median(time_runs([&] { at::mm_out(out, a, b); }, 0, false, 20, 3));
  return 2.0 * kSize * kSize * kSize / (ms * 1e-3);
}

}  // namespace switchyard::bench
