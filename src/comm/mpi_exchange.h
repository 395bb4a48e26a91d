// The MPI operations below MpiCollectives, blocking, each on the thread that calls it. Everything is built on one
// exchange of blocks between all pairs, because MPI's own reductions choose their order of summation.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <vector>

#include "comm/collectives.h"

namespace switchyard {

struct Block {
  char* data = nullptr;
  std::size_t bytes = 0;
};

// Sends send[p] to rank p and receives receive[p] from it, this rank's own included (copied, unless it is in place).
void exchange(MPI_Comm comm, const std::vector<Block>& send, const std::vector<Block>& receive);

// out = this rank's block of the sum over ranks of `in`. Block r of `in` begins at element begins[r], and the last ends
// at begins[size]; out may be this rank's block of `in`.
void reduce_scatter_ordered(MPI_Comm comm, const void* in, const std::vector<std::size_t>& begins, void* out,
                            DType type);

// Waits without keeping a core busy: the ranks of one host compute on the same cores.
void wait_politely(std::vector<MPI_Request>& requests);

}  // namespace switchyard
