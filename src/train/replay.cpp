#include "train/replay.h"

#include <sys/resource.h>

namespace switchyard {

void Replay::run([[maybe_unused]] bool may_record) {
  ++calls_;
#ifdef SWITCHYARD_WITH_CUDA
  if (graph_ || (capture_ && may_record && calls_ > kEagerCalls)) return replay();
#endif
  work_();
}

#ifndef SWITCHYARD_WITH_CUDA
struct Replay::Graph {};
Replay::Replay(std::function<void()> work, bool /*capture*/) : work_(std::move(work)), capture_(false) {}
Replay::~Replay() = default;
void use_side_stream(int) {}
void* current_stream_of(int) { return nullptr; }
void synchronize_device(int) {}
std::int64_t peak_memory_bytes(int) { return peak_resident_bytes(); }
#endif

std::int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

}  // namespace switchyard
