#include "data/prefetch.h"

#include <algorithm>

namespace switchyard {

Prefetcher::Prefetcher(const Loader& loader, const MicroBatchSchedule& schedule, std::int64_t first_step, int depth)
    : loader_(loader), schedule_(schedule), step_(first_step), depth_(static_cast<std::size_t>(std::max(depth, 1))) {
  thread_ = std::thread([this] { run(); });
}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Prefetcher::run() {
  try {
    for (;;) {
      Batch batch = loader_.read(schedule_.number(step_, index_));
      if (++index_ == schedule_.per_rank()) {
        index_ = 0;
        ++step_;
      }
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || ready_.size() < depth_; });
      if (stop_) return;
      ready_.push_back(std::move(batch));
      changed_.notify_all();
    }
  } catch (...) {
    const std::lock_guard<std::mutex> lock(mutex_);
    error_ = std::current_exception();
    changed_.notify_all();
  }
}

Batch Prefetcher::next() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return error_ || !ready_.empty(); });
  if (ready_.empty()) std::rethrow_exception(error_);
  Batch batch = std::move(ready_.front());
  ready_.pop_front();
  changed_.notify_all();
  return batch;
}

}  // namespace switchyard
