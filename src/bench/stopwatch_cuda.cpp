#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <chrono>
#include <deque>
#include <optional>

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

// Work that is ready to be timed: it has run, and what is to be replayed is recorded.
class Timed {
 public:
  Timed(std::function<void()> work, bool record, int warm_ups, int runs_a_graph)
      : work_(std::move(work)), stream_(c10::cuda::getCurrentCUDAStream()), runs_(record ? runs_a_graph : 1) {
    for (int i = 0; i < warm_ups; ++i) work_();
    stream_.synchronize();
    if (!record) return;
    // A pool whose graph is gone is freed by this alone, and never while another is recorded; what the warm-ups held is
    // room for the graph's own pool.
    c10::cuda::CUDACachingAllocator::emptyCache();
    graph_.emplace();
    capture(*graph_, [&] {
      for (int i = 0; i < runs_; ++i) work_();
    });
  }
  void run() { graph_ ? graph_->replay() : work_(); }
  // A run, or a graph of them, between two marks of the stream.
  void add() {
    Mark& mark = marks_.emplace_back();
    SWITCHYARD_CUDA(cudaEventRecord(mark.begin.event, stream_));
    run();
    SWITCHYARD_CUDA(cudaEventRecord(mark.end.event, stream_));
  }
  // Of a run, the median.
  double milliseconds() const {
    stream_.synchronize();
    std::vector<double> times;
    for (const Mark& mark : marks_) {
      float ms = 0;
      SWITCHYARD_CUDA(cudaEventElapsedTime(&ms, mark.begin.event, mark.end.event));
      times.push_back(static_cast<double>(ms) / runs_);
    }
    return median(times);
  }

 private:
  struct Mark {
    Event begin, end;
  };

  std::function<void()> work_;
  c10::cuda::CUDAStream stream_;
  int runs_;
  std::optional<at::cuda::CUDAGraph> graph_;
  std::deque<Mark> marks_;
};

// A cool card is up to a fifth faster, and not for long.
void warm_up(Timed& forward, Timed& both) {
  using std::chrono::steady_clock;
  const auto end = steady_clock::now() + std::chrono::milliseconds(500);
  while (steady_clock::now() < end) {
    forward.run(), both.run();
    c10::cuda::getCurrentCUDAStream().synchronize();
  }
}

}  // namespace

PassTimes time_on_gpu(const Passes& passes, int device, bool record, int repeats, int warm_ups, int runs_a_graph) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  Timed forward([&] { passes.forward(); }, record, warm_ups, runs_a_graph);
  Timed both([&] { passes.backward(passes.forward()); }, record, warm_ups, runs_a_graph);
  warm_up(forward, both);
  for (int i = 0; i < repeats; ++i) forward.add(), both.add();
  return {forward.milliseconds(), both.milliseconds() - forward.milliseconds()};
}

double product_rate() {
  if (c10::cuda::device_count() == 0) throw ConfigError("bench ops times CUDA kernels, and no GPU is visible here");
  constexpr std::int64_t kSize = 8192;
  const auto draw = [] {
    return at::randn({kSize, kSize}, at::TensorOptions().device(at::kCUDA).dtype(at::kBFloat16));
  };
  at::Tensor a = draw(), b = draw(), out = at::empty_like(a);
  Timed product([&] { at::mm_out(out, a, b); }, false, 3, 1);
  for (int i = 0; i < 20; ++i) product.add();
  return 2.0 * kSize * kSize * kSize / (product.milliseconds() * 1e-3);
}

}  // namespace switchyard::bench
