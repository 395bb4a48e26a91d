#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>

#include "train/replay.h"

namespace switchyard {

namespace {

// All graphs that live at one time share one memory pool: they never run at the same time. A pool ends with its last
// graph, and cannot be taken again.
std::shared_ptr<at::cuda::MempoolId_t> shared_pool() {
  static std::weak_ptr<at::cuda::MempoolId_t> current;
  auto pool = current.lock();
  if (!pool) current = pool = std::make_shared<at::cuda::MempoolId_t>(at::cuda::graph_pool_handle());
  return pool;
}

}  // namespace

struct Replay::Graph {
  std::shared_ptr<at::cuda::MempoolId_t> pool = shared_pool();
  at::cuda::CUDAGraph graph;
};

Replay::Replay(std::function<void()> work, bool capture) : work_(std::move(work)), capture_(capture) {}
Replay::~Replay() = default;

void Replay::replay() {
  if (!graph_) {
    c10::cuda::getCurrentCUDAStream().synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();  // what the eager calls held is room for the graph's pool
    graph_ = std::make_unique<Graph>();
    graph_->graph.capture_begin(*graph_->pool, cudaStreamCaptureModeThreadLocal);
    work_();
    graph_->graph.capture_end();
  }
  graph_->graph.replay();
}

void use_side_stream(int device) {
  if (device >= 0)
    c10::cuda::setCurrentCUDAStream(
        c10::cuda::getStreamFromPool(/*isHighPriority=*/false, static_cast<c10::DeviceIndex>(device)));
}

void* current_stream_of(int device) {
  return device < 0 ? nullptr : c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).stream();
}

void synchronize_device(int device) {
  if (device >= 0) c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).synchronize();
}

std::int64_t peak_memory_bytes(int device) {
  if (device < 0) return peak_resident_bytes();
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
  return stats.reserved_bytes[0].peak;
}

}  // namespace switchyard
