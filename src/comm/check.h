// The one check of MPI calls and the one of NCCL calls: RunError with the call, the place and the library's own words.
#pragma once

#include <mpi.h>
#ifdef SWITCHYARD_WITH_CUDA
#include <nccl.h>
#endif

#include "base/error.h"
#include "base/text.h"

namespace switchyard {

inline void check_mpi(int code, const char* call, const char* file, int line) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw RunError(format("MPI: %s (%s at %s:%d)", text, call, file, line));
}

#ifdef SWITCHYARD_WITH_CUDA
// ncclInProgress is success of a communicator that does not block.
inline void check_nccl(ncclResult_t code, const char* call, const char* file, int line) {
  if (code == ncclSuccess || code == ncclInProgress) return;
  throw RunError(
      format("NCCL: %s: %s (%s at %s:%d)", ncclGetErrorString(code), ncclGetLastError(nullptr), call, file, line));
}
#endif

}  // namespace switchyard

#define SWITCHYARD_MPI_CHECK(call) ::switchyard::check_mpi((call), #call, __FILE__, __LINE__)
#define SWITCHYARD_NCCL_CHECK(call) ::switchyard::check_nccl((call), #call, __FILE__, __LINE__)
