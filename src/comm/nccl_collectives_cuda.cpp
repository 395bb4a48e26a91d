// Collectives over device memory by NCCL, on a stream of the object's own. An event takes the caller's stream into it
// and another takes the result back, which inside a capture become edges of the graph: communication runs beside the
// work that follows start_* and before the work that follows wait.
//
// Order of destruction: CUDA graphs that captured the communicator, then this object, then the World.
#include <cuda_runtime.h>

#include <exception>
#include <mutex>

#include "base/error.h"
#include "comm/check.h"
#include "comm/collectives.h"
#include "comm/world.h"
#include "kernels/cuda_check.h"

namespace switchyard {
namespace {

// Makes `device` current for a scope: streams, events and communicators belong to one.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    SWITCHYARD_CUDA(cudaGetDevice(&before_));
    SWITCHYARD_CUDA(cudaSetDevice(device));
  }
  ~DeviceScope() { cudaSetDevice(before_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
};

// Events used over and over: a captured or enqueued wait keeps the record it saw, so an event is free once waited for.
class EventPool {
 public:
  ~EventPool() {
    for (cudaEvent_t event : free_) cudaEventDestroy(event);
  }
  cudaEvent_t take() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        const cudaEvent_t event = free_.back();
        free_.pop_back();
        return event;
      }
    }
    cudaEvent_t event;
    SWITCHYARD_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return event;
  }
  void give_back(cudaEvent_t event) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(event);
  }

 private:
  std::mutex mutex_;
  std::vector<cudaEvent_t> free_;
};

class EnqueuedOperation : public Pending::Operation {
 public:
  EnqueuedOperation(std::shared_ptr<EventPool> events, cudaEvent_t done) : events_(std::move(events)), done_(done) {}
  ~EnqueuedOperation() override { events_->give_back(done_); }
  void wait(CommStream stream) override {
    SWITCHYARD_CUDA(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), done_, 0));
  }

 private:
  std::shared_ptr<EventPool> events_;
  cudaEvent_t done_;
};

ncclDataType_t nccl_type(DType type) { return type == DType::kFloat32 ? ncclFloat32 : ncclBfloat16; }

class NcclCollectives : public Collectives {
 public:
  NcclCollectives(World& world, int device)
      : Collectives(world.rank(), world.size()), device_(device), exceptions_at_start_(std::uncaught_exceptions()) {
    const DeviceScope scope(device);
    int least = 0, greatest = 0;
    SWITCHYARD_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    SWITCHYARD_CUDA(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
    if (size() == 1) return;
    ncclUniqueId id{};
    if (rank() == 0) SWITCHYARD_NCCL_CHECK(ncclGetUniqueId(&id));
    const std::string bytes = world.control().broadcast("NCCL id", std::string(id.internal, sizeof id.internal), 0);
    bytes.copy(id.internal, sizeof id.internal);
    SWITCHYARD_NCCL_CHECK(ncclCommInitRank(&comm_, size(), id, rank()));
  }

  // While an exception unwinds nothing is waited for: the other ranks may never do their part.
  ~NcclCollectives() override {
    cudaSetDevice(device_);
    const bool unwinding = std::uncaught_exceptions() > exceptions_at_start_;
    if (!unwinding) cudaStreamSynchronize(stream_);
    if (comm_) unwinding ? ncclCommAbort(comm_) : ncclCommDestroy(comm_);
    if (!unwinding) cudaStreamDestroy(stream_);
  }

  Pending start_all_reduce_sum(void* data, std::size_t count, DType type, CommStream stream) override {
    if (size() == 1) return Pending();
    return enqueue(stream, [&] {
      SWITCHYARD_NCCL_CHECK(ncclAllReduce(data, data, count, nccl_type(type), ncclSum, comm_, stream_));
    });
  }

  Pending start_reduce_scatter_sum(const void* in, void* out, std::size_t count_per_rank, DType type,
                                   CommStream stream) override {
    if (size() == 1) return copy(in, out, count_per_rank * bytes_of(type), stream);
    return enqueue(stream, [&] {
      SWITCHYARD_NCCL_CHECK(ncclReduceScatter(in, out, count_per_rank, nccl_type(type), ncclSum, comm_, stream_));
    });
  }

  Pending start_all_gather(const void* in, void* out, std::size_t bytes_per_rank, CommStream stream) override {
    if (size() == 1) return copy(in, out, bytes_per_rank, stream);
    return enqueue(stream,
                   [&] { SWITCHYARD_NCCL_CHECK(ncclAllGather(in, out, bytes_per_rank, ncclUint8, comm_, stream_)); });
  }

  Pending start_broadcast(void* data, std::size_t bytes, int root, CommStream stream) override {
    if (size() == 1) return Pending();
    return enqueue(stream,
                   [&] { SWITCHYARD_NCCL_CHECK(ncclBroadcast(data, data, bytes, ncclUint8, root, comm_, stream_)); });
  }

  Pending start_all_to_all_v(const void* in, const std::vector<std::size_t>& send_bytes, void* out,
                             const std::vector<std::size_t>& receive_bytes, CommStream stream) override {
    SWITCHYARD_ASSERT(static_cast<int>(send_bytes.size()) == size() && static_cast<int>(receive_bytes.size()) == size(),
                      "one size a rank");
    if (size() == 1) return copy(in, out, send_bytes[0], stream);
    return enqueue(stream,
                   [&] { exchange(static_cast<const char*>(in), send_bytes, static_cast<char*>(out), receive_bytes); });
  }

 private:
  template <class Call>
  Pending enqueue(CommStream stream, Call call) {
    const DeviceScope scope(device_);
    const cudaEvent_t event = events_->take();
    SWITCHYARD_CUDA(cudaEventRecord(event, static_cast<cudaStream_t>(stream)));
    SWITCHYARD_CUDA(cudaStreamWaitEvent(stream_, event, 0));
    call();
    SWITCHYARD_CUDA(cudaEventRecord(event, stream_));
    return Pending(std::make_shared<EnqueuedOperation>(events_, event));
  }

  Pending copy(const void* in, void* out, std::size_t bytes, CommStream stream) {
    if (in == out || bytes == 0) return Pending();
    return enqueue(stream,
                   [&] { SWITCHYARD_CUDA(cudaMemcpyAsync(out, in, bytes, cudaMemcpyDeviceToDevice, stream_)); });
  }

  void exchange(const char* in, const std::vector<std::size_t>& send_bytes, char* out,
                const std::vector<std::size_t>& receive_bytes) {
    SWITCHYARD_NCCL_CHECK(ncclGroupStart());
    for (int peer = 0; peer < size(); ++peer) {
      if (send_bytes[peer] > 0) SWITCHYARD_NCCL_CHECK(ncclSend(in, send_bytes[peer], ncclUint8, peer, comm_, stream_));
      if (receive_bytes[peer] > 0)
        SWITCHYARD_NCCL_CHECK(ncclRecv(out, receive_bytes[peer], ncclUint8, peer, comm_, stream_));
      in += send_bytes[peer];
      out += receive_bytes[peer];
    }
    SWITCHYARD_NCCL_CHECK(ncclGroupEnd());
  }

  int device_;
  int exceptions_at_start_;
  cudaStream_t stream_ = nullptr;
  ncclComm_t comm_ = nullptr;
  std::shared_ptr<EventPool> events_ = std::make_shared<EventPool>();
};

}  // namespace

std::unique_ptr<Collectives> make_device_collectives(World& world, int device) {
  return std::make_unique<NcclCollectives>(world, device);
}

}  // namespace switchyard
