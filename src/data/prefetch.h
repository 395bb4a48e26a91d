// Reads micro-batches ahead on a thread of its own, in the order the rank will want them.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "data/loader.h"

namespace switchyard {

class Prefetcher {
 public:
  // Begins with the first micro-batch of `first_step`. `loader` must outlive it.
  Prefetcher(const Loader& loader, const MicroBatchSchedule& schedule, std::int64_t first_step, int depth = 4);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Batch next();  // blocks until it is there; an error of the thread is thrown here

 private:
  void run();

  const Loader& loader_;
  const MicroBatchSchedule schedule_;
  std::int64_t step_, index_ = 0;
  const std::size_t depth_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> ready_;
  std::exception_ptr error_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace switchyard
