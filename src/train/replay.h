// A piece of GPU work that runs eagerly a few times, is then recorded as one CUDA graph, and replayed from there on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace switchyard {

class Replay {
 public:
  // `work` must issue the same kernels on the same memory at every call. capture false: every call runs it.
  // Calls 1 and 2 run eagerly (libraries choose their kernels and allocate workspaces), the third records.
  Replay(std::function<void()> work, bool capture);
  ~Replay();  // destroy before the communicator whose calls it captured
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  // may_record false: this call runs eagerly, and recording waits for a later one.
  void run(bool may_record = true);
  // A call whose kernels are not those to record, before any is recorded. It does not count as one of the first two.
  void run_apart() { work_(); }
  bool warm() const { return calls_ >= kEagerCalls; }  // its next call may record

 private:
  void replay();  // records at its first call
  struct Graph;
  static constexpr int kEagerCalls = 2;

  std::function<void()> work_;
  const bool capture_;
  int calls_ = 0;
  std::unique_ptr<Graph> graph_;
};

// A stream of its own for everything the process does on the GPU: a default stream cannot be captured. No-op on CPU.
void use_side_stream(int device);
void* current_stream_of(int device);  // the cudaStream_t as collectives take it; null on CPU (device < 0)
void synchronize_device(int device);
// Peak bytes: of torch's allocator on a GPU, resident memory of the process on CPU (device < 0).
std::int64_t peak_memory_bytes(int device);
std::int64_t peak_resident_bytes();

}  // namespace switchyard
