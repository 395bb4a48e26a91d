#include "comm/mpi_exchange.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "comm/check.h"
#include "comm/ordered_sum.h"

namespace switchyard {
namespace {

constexpr std::size_t kLargestMessage = 1u << 30;  // MPI counts are ints
constexpr std::size_t kSumChunk = 1u << 18;        // elements of a block in flight: bounds the buffer of terms

void post_messages(MPI_Comm comm, const Block& block, int peer, bool sends, std::vector<MPI_Request>& requests) {
  for (std::size_t done = 0; done < block.bytes; done += kLargestMessage) {
    const int bytes = static_cast<int>(std::min(kLargestMessage, block.bytes - done));
    requests.emplace_back();
    if (sends) {
      SWITCHYARD_MPI_CHECK(MPI_Isend(block.data + done, bytes, MPI_BYTE, peer, 0, comm, &requests.back()));
    } else {
      SWITCHYARD_MPI_CHECK(MPI_Irecv(block.data + done, bytes, MPI_BYTE, peer, 0, comm, &requests.back()));
    }
  }
}

// One chunk of the blocks: everyone's terms of this rank's part come in, then are added.
template <class T>
void reduce_chunk(MPI_Comm comm, T* in, const std::vector<std::size_t>& begins, T* out, std::size_t chunk,
                  std::vector<T>& terms) {
  const int size = static_cast<int>(begins.size()) - 1;
  int rank = 0;
  SWITCHYARD_MPI_CHECK(MPI_Comm_rank(comm, &rank));
  const auto length = [&](int r) {
    const std::size_t whole = begins[r + 1] - begins[r];
    return whole <= chunk ? 0 : std::min(kSumChunk, whole - chunk);
  };
  const std::size_t own = length(rank);
  terms.resize(own * size);
  std::vector<Block> send(size), receive(size);
  std::vector<const T*> term(size);
  for (int r = 0; r < size; ++r) {
    T* arrives = r == rank ? in + begins[rank] + chunk : terms.data() + r * own;
    send[r] = {reinterpret_cast<char*>(in + begins[r] + chunk), length(r) * sizeof(T)};
    receive[r] = {reinterpret_cast<char*>(arrives), own * sizeof(T)};
    term[r] = arrives;
  }
  exchange(comm, send, receive);
  ordered_sum(term.data(), size, out + chunk, own);
}

template <class T>
void reduce_scatter(MPI_Comm comm, const void* in, const std::vector<std::size_t>& begins, void* out) {
  std::size_t longest = 0;
  for (std::size_t r = 0; r + 1 < begins.size(); ++r) longest = std::max(longest, begins[r + 1] - begins[r]);
  std::vector<T> terms;
  T* input = static_cast<T*>(const_cast<void*>(in));  // only read: MPI_Isend's blocks are one type with Irecv's here
  for (std::size_t chunk = 0; chunk < longest; chunk += kSumChunk) {
    reduce_chunk(comm, input, begins, static_cast<T*>(out), chunk, terms);
  }
}

}  // namespace

void wait_politely(std::vector<MPI_Request>& requests) {
  using std::chrono::microseconds;
  for (int attempt = 0;; ++attempt) {
    int done = 0;
    SWITCHYARD_MPI_CHECK(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE));
    if (done) return;
    if (attempt < 20) continue;
    std::this_thread::sleep_for(microseconds(attempt < 200 ? 20 : 200));
  }
}

void exchange(MPI_Comm comm, const std::vector<Block>& send, const std::vector<Block>& receive) {
  int rank = 0;
  SWITCHYARD_MPI_CHECK(MPI_Comm_rank(comm, &rank));
  const int size = static_cast<int>(send.size());
  std::vector<MPI_Request> requests;
  for (int step = 1; step < size; ++step)
    post_messages(comm, receive[(rank + size - step) % size], (rank + size - step) % size, false, requests);
  for (int step = 1; step < size; ++step)
    post_messages(comm, send[(rank + step) % size], (rank + step) % size, true, requests);
  if (send[rank].bytes > 0 && send[rank].data != receive[rank].data) {
    std::memcpy(receive[rank].data, send[rank].data, send[rank].bytes);
  }
  if (!requests.empty()) wait_politely(requests);
}

void reduce_scatter_ordered(MPI_Comm comm, const void* in, const std::vector<std::size_t>& begins, void* out,
                            DType type) {
  if (type == DType::kFloat32) {
    reduce_scatter<float>(comm, in, begins, out);
  } else {
    reduce_scatter<std::uint16_t>(comm, in, begins, out);
  }
}

}  // namespace switchyard
