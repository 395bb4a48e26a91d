// Collectives: what moves gradients, weights and rows between ranks. One interface, two implementations: NCCL for
// device memory, MPI for host memory. Both overlap by the same rule, so the code that uses them does not ask which.
//
//   Pending done = collectives.start_reduce_scatter_sum(in, out, n, DType::kFloat32, stream);
//   ... more work on `stream` ...
//   done.wait(stream);          // from here on `stream` (NCCL) or this thread (MPI) sees the result
//
// An operation starts after everything already issued on the stream given to start_*; operations run one after the
// other in the order they were started, which must be the same on all ranks. Buffers stay alive and untouched until
// wait. On NCCL nothing blocks the host and all of it can be captured into a CUDA graph, start and wait in the same
// one; destroy the graphs that captured a communicator before the communicator (else its destruction never returns).
// On MPI a thread of the object does the work while the caller computes; `stream` is ignored.
//
// Sums over MPI are taken in rank order, ((r0 + r1) + r2) + r3, in fp32 whatever the type, and rounded once: bitwise
// repeatable, and the same on every rank. NCCL chooses its own order, the same in every run on the same machines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace switchyard {

class World;

using CommStream = void*;  // a cudaStream_t; null on CPU

enum class DType { kFloat32, kBFloat16 };
inline std::size_t bytes_of(DType type) { return type == DType::kFloat32 ? 4 : 2; }

// An operation under way. It runs to its end also when nobody waits.
class [[nodiscard]] Pending {
 public:
  class Operation {
   public:
    virtual ~Operation() = default;
    virtual void wait(CommStream stream) = 0;
  };
  Pending() = default;  // nothing: wait returns
  explicit Pending(std::shared_ptr<Operation> operation) : operation_(std::move(operation)) {}
  // RunError when the operation failed. A second wait does nothing.
  void wait(CommStream stream = nullptr) {
    if (auto operation = std::move(operation_)) operation->wait(stream);
  }

 private:
  std::shared_ptr<Operation> operation_;
};

class Collectives {
 public:
  Collectives(int rank, int size) : rank_(rank), size_(size) {}
  virtual ~Collectives() = default;
  int rank() const { return rank_; }
  int size() const { return size_; }

  // data[i] = sum over ranks of data[i]
  virtual Pending start_all_reduce_sum(void* data, std::size_t count, DType type, CommStream stream = nullptr) = 0;
  // in [size * count_per_rank], out [count_per_rank] = this rank's block of the sum; out may be that block of `in`.
  virtual Pending start_reduce_scatter_sum(const void* in, void* out, std::size_t count_per_rank, DType type,
                                           CommStream stream = nullptr) = 0;
  // in [bytes_per_rank], out [size * bytes_per_rank] in rank order; `in` may be this rank's block of out.
  virtual Pending start_all_gather(const void* in, void* out, std::size_t bytes_per_rank,
                                   CommStream stream = nullptr) = 0;
  virtual Pending start_broadcast(void* data, std::size_t bytes, int root, CommStream stream = nullptr) = 0;
  // Blocks follow each other in rank order, in `in` by destination and in `out` by source; the two do not overlap.
  // send_bytes[p] here equals receive_bytes[this rank] on rank p. Either may be 0.
  virtual Pending start_all_to_all_v(const void* in, const std::vector<std::size_t>& send_bytes, void* out,
                                     const std::vector<std::size_t>& receive_bytes, CommStream stream = nullptr) = 0;

  // The same, started and waited for on one stream.
  void all_reduce_sum(void* data, std::size_t count, DType type, CommStream stream = nullptr);
  void reduce_scatter_sum(const void* in, void* out, std::size_t count_per_rank, DType type,
                          CommStream stream = nullptr);
  void all_gather(const void* in, void* out, std::size_t bytes_per_rank, CommStream stream = nullptr);
  void broadcast(void* data, std::size_t bytes, int root, CommStream stream = nullptr);
  void all_to_all_v(const void* in, const std::vector<std::size_t>& send_bytes, void* out,
                    const std::vector<std::size_t>& receive_bytes, CommStream stream = nullptr);

 private:
  int rank_, size_;
};

// For host memory: MPI, or plain copies in a world of one. Destroy it before the World.
std::unique_ptr<Collectives> make_host_collectives(World& world);
// For memory of CUDA device `device` (WITH_CUDA builds only): NCCL, its id sent over the control channel. In a world of
// one the in-place forms do nothing and the others are device copies.
std::unique_ptr<Collectives> make_device_collectives(World& world, int device);

}  // namespace switchyard
