#include "comm/mpi_collectives.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "comm/check.h"
#include "comm/mpi_exchange.h"

namespace switchyard {
namespace {

char* bytes_at(const void* base, std::size_t offset) { return static_cast<char*>(const_cast<void*>(base)) + offset; }

std::vector<Block> consecutive(const void* base, const std::vector<std::size_t>& bytes) {
  std::vector<Block> blocks;
  std::size_t offset = 0;
  for (std::size_t size : bytes) {
    blocks.push_back({bytes_at(base, offset), size});
    offset += size;
  }
  return blocks;
}

// Equal shares of `count` elements, the last ones shorter or empty.
std::vector<std::size_t> equal_shares(std::size_t count, int size) {
  const std::size_t share = (count + size - 1) / size;
  std::vector<std::size_t> begins;
  for (int r = 0; r <= size; ++r) begins.push_back(std::min(count, r * share));
  return begins;
}

}  // namespace

class MpiCollectives::Job : public Pending::Operation {
 public:
  explicit Job(std::function<void()> work) : work_(std::move(work)) {}

  void run() {
    std::exception_ptr failure;
    try {
      work_();
    } catch (...) {
      failure = std::current_exception();  // thrown again where the result is waited for
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    failure_ = failure;
    done_ = true;
    changed_.notify_all();
  }

  void wait(CommStream) override {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  std::function<void()> work_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::exception_ptr failure_;
};

MpiCollectives::MpiCollectives(int rank, int size)
    : Collectives(rank, size), queue_(std::make_shared<Queue>()), exceptions_at_start_(std::uncaught_exceptions()) {
  SWITCHYARD_MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &comm_));
  int provided = MPI_THREAD_SINGLE;
  SWITCHYARD_MPI_CHECK(MPI_Query_thread(&provided));
  has_thread_ = provided >= MPI_THREAD_SERIALIZED;
  if (!has_thread_) {
    log::warn("this MPI lets only one thread call it: gradients are reduced after the backward pass, not during it");
    return;
  }
  sigset_t all, before;  // signals are for the main thread
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([queue = queue_] { run(queue); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

MpiCollectives::~MpiCollectives() {
  if (std::uncaught_exceptions() > exceptions_at_start_) {
    if (thread_.joinable()) thread_.detach();  // it may be waiting for a rank that waits for this one
    return;
  }
  if (has_thread_) {
    {
      const std::lock_guard<std::mutex> lock(queue_->mutex);
      queue_->closed = true;
    }
    queue_->changed.notify_all();
    thread_.join();
  }
  MPI_Comm_free(&comm_);
}

void MpiCollectives::run(const std::shared_ptr<Queue>& queue) {
  for (;;) {
    std::shared_ptr<Job> job;
    {
      std::unique_lock<std::mutex> lock(queue->mutex);
      queue->changed.wait(lock, [&] { return queue->closed || !queue->jobs.empty(); });
      if (queue->jobs.empty()) return;
      job = std::move(queue->jobs.front());
      queue->jobs.pop_front();
    }
    job->run();
  }
}

Pending MpiCollectives::start(std::function<void()> work) {
  auto job = std::make_shared<Job>(std::move(work));
  if (has_thread_) {
    {
      const std::lock_guard<std::mutex> lock(queue_->mutex);
      queue_->jobs.push_back(job);
    }
    queue_->changed.notify_all();
  } else {
    job->run();
  }
  return Pending(job);
}

// Each rank sums the share it owns in rank order, then everyone takes everyone's share: the same bits on all ranks.
Pending MpiCollectives::start_all_reduce_sum(void* data, std::size_t count, DType type, CommStream) {
  return start([comm = comm_, me = rank(), n = size(), data, count, type] {
    const std::vector<std::size_t> begins = equal_shares(count, n);
    const std::size_t width = bytes_of(type);
    reduce_scatter_ordered(comm, data, begins, bytes_at(data, begins[me] * width), type);
    std::vector<Block> receive;
    for (int r = 0; r < n; ++r)
      receive.push_back({bytes_at(data, begins[r] * width), (begins[r + 1] - begins[r]) * width});
    exchange(comm, std::vector<Block>(n, receive[me]), receive);
  });
}

Pending MpiCollectives::start_reduce_scatter_sum(const void* in, void* out, std::size_t count_per_rank, DType type,
                                                 CommStream) {
  return start([comm = comm_, n = size(), in, out, count_per_rank, type] {
    reduce_scatter_ordered(comm, in, equal_shares(count_per_rank * n, n), out, type);
  });
}

Pending MpiCollectives::start_all_gather(const void* in, void* out, std::size_t bytes_per_rank, CommStream) {
  return start([comm = comm_, n = size(), in, out, bytes_per_rank] {
    const std::vector<Block> receive = consecutive(out, std::vector<std::size_t>(n, bytes_per_rank));
    exchange(comm, std::vector<Block>(n, Block{bytes_at(in, 0), bytes_per_rank}), receive);
  });
}

Pending MpiCollectives::start_broadcast(void* data, std::size_t bytes, int root, CommStream) {
  return start([comm = comm_, data, bytes, root] {
    constexpr std::size_t kPiece = 1u << 30;  // MPI counts are ints
    for (std::size_t done = 0; done < bytes; done += kPiece) {
      std::vector<MPI_Request> request(1);
      const int count = static_cast<int>(std::min(kPiece, bytes - done));
      SWITCHYARD_MPI_CHECK(MPI_Ibcast(bytes_at(data, done), count, MPI_BYTE, root, comm, &request[0]));
      wait_politely(request);
    }
  });
}

Pending MpiCollectives::start_all_to_all_v(const void* in, const std::vector<std::size_t>& send_bytes, void* out,
                                           const std::vector<std::size_t>& receive_bytes, CommStream) {
  SWITCHYARD_ASSERT(static_cast<int>(send_bytes.size()) == size() && static_cast<int>(receive_bytes.size()) == size(),
                    "one size a rank");
  return start([comm = comm_, in, send_bytes, out, receive_bytes] {
    exchange(comm, consecutive(in, send_bytes), consecutive(out, receive_bytes));
  });
}

}  // namespace switchyard
