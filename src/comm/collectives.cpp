#include "comm/collectives.h"

#include <cstring>

#include "base/error.h"
#include "comm/mpi_collectives.h"
#include "comm/world.h"

namespace switchyard {
namespace {

// A world of one: every sum is the only term.
class LocalCollectives : public Collectives {
 public:
  LocalCollectives() : Collectives(0, 1) {}
  Pending start_all_reduce_sum(void*, std::size_t, DType, CommStream) override { return Pending(); }
  Pending start_reduce_scatter_sum(const void* in, void* out, std::size_t count, DType type, CommStream) override {
    return copy(in, out, count * bytes_of(type));
  }
  Pending start_all_gather(const void* in, void* out, std::size_t bytes, CommStream) override {
    return copy(in, out, bytes);
  }
  Pending start_broadcast(void*, std::size_t, int, CommStream) override { return Pending(); }
  Pending start_all_to_all_v(const void* in, const std::vector<std::size_t>& send_bytes, void* out,
                             const std::vector<std::size_t>& receive_bytes, CommStream) override {
    SWITCHYARD_ASSERT(send_bytes.size() == 1 && send_bytes == receive_bytes, "a world of one sends to itself alone");
    return copy(in, out, send_bytes[0]);
  }

 private:
  static Pending copy(const void* in, void* out, std::size_t bytes) {
    if (in != out && bytes > 0) std::memcpy(out, in, bytes);
    return Pending();
  }
};

}  // namespace

void Collectives::all_reduce_sum(void* data, std::size_t count, DType type, CommStream stream) {
  start_all_reduce_sum(data, count, type, stream).wait(stream);
}

void Collectives::reduce_scatter_sum(const void* in, void* out, std::size_t count_per_rank, DType type,
                                     CommStream stream) {
  start_reduce_scatter_sum(in, out, count_per_rank, type, stream).wait(stream);
}

void Collectives::all_gather(const void* in, void* out, std::size_t bytes_per_rank, CommStream stream) {
  start_all_gather(in, out, bytes_per_rank, stream).wait(stream);
}

void Collectives::broadcast(void* data, std::size_t bytes, int root, CommStream stream) {
  start_broadcast(data, bytes, root, stream).wait(stream);
}

void Collectives::all_to_all_v(const void* in, const std::vector<std::size_t>& send_bytes, void* out,
                               const std::vector<std::size_t>& receive_bytes, CommStream stream) {
  start_all_to_all_v(in, send_bytes, out, receive_bytes, stream).wait(stream);
}

std::unique_ptr<Collectives> make_host_collectives(World& world) {
  if (world.size() == 1) return std::make_unique<LocalCollectives>();
  SWITCHYARD_ASSERT(world.has_mpi(), "host collectives need MPI; World::join refuses CPU ranks without it");
  return std::make_unique<MpiCollectives>(world.rank(), world.size());
}

#ifndef SWITCHYARD_WITH_CUDA
std::unique_ptr<Collectives> make_device_collectives(World&, int) {
  throw RunError("collectives over GPU memory need a build with CUDA; run runs/setup.sh --cuda");
}
#endif

}  // namespace switchyard
