// Collectives over host memory by MPI. One thread of the object makes all MPI calls, in the order in which operations
// were started, while the caller computes. Where MPI lets only the main thread call (below MPI_THREAD_SERIALIZED) the
// operations run inside start_* instead.
#pragma once

#include <mpi.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "comm/collectives.h"

namespace switchyard {

class MpiCollectives : public Collectives {
 public:
  MpiCollectives(int rank, int size);
  ~MpiCollectives() override;  // finishes what was started; while an exception unwinds it waits for nothing

  Pending start_all_reduce_sum(void* data, std::size_t count, DType type, CommStream stream) override;
  Pending start_reduce_scatter_sum(const void* in, void* out, std::size_t count_per_rank, DType type,
                                   CommStream stream) override;
  Pending start_all_gather(const void* in, void* out, std::size_t bytes_per_rank, CommStream stream) override;
  Pending start_broadcast(void* data, std::size_t bytes, int root, CommStream stream) override;
  Pending start_all_to_all_v(const void* in, const std::vector<std::size_t>& send_bytes, void* out,
                             const std::vector<std::size_t>& receive_bytes, CommStream stream) override;

 private:
  class Job;
  // Shared with the thread, which is left behind when an exception unwinds the object.
  struct Queue {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::shared_ptr<Job>> jobs;
    bool closed = false;
  };
  static void run(const std::shared_ptr<Queue>& queue);
  Pending start(std::function<void()> work);

  MPI_Comm comm_ = MPI_COMM_NULL;
  std::shared_ptr<Queue> queue_;
  bool has_thread_ = false;
  int exceptions_at_start_;
  std::thread thread_;
};

}  // namespace switchyard
