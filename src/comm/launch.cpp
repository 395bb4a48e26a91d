#include "comm/launch.h"

#include <cerrno>
#include <climits>
#include <cstdlib>

#include "base/error.h"
#include "base/text.h"

namespace switchyard {
namespace {

int read_integer(const Environment& environment, const char* name, int low, int high) {
  const char* text = environment(name);
  if (!text || !*text) {
    throw ConfigError(
        format("RANK and WORLD_SIZE are set but %s is not; set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT "
               "for every process, or start them with mpirun",
               name));
  }
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text, &end, 10);
  if (*end || errno || value < low || value > high) {
    throw ConfigError(
        format("environment variable %s = \"%s\" must be a whole number from %d to %d", name, text, low, high));
  }
  return static_cast<int>(value);
}

// As read_integer, for variables a launcher may leave out.
int read_or(const Environment& environment, const char* name, int fallback) {
  return environment(name) ? read_integer(environment, name, 0, INT_MAX) : fallback;
}

// One row a launcher: the variables it gives each process.
struct PmiVariables {
  const char *rank, *size, *local_rank;
};
constexpr PmiVariables kOpenMpi = {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"};
constexpr PmiVariables kPmi = {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"};
constexpr PmiVariables kSlurm = {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"};

}  // namespace

Launch detect_launch(const Environment& environment, bool on_gpu) {
  Launch launch;
  for (const PmiVariables& v : {kOpenMpi, kPmi, kSlurm}) {
    if (!environment(v.rank) || !environment(v.size)) continue;
    // A batch script and what it calls directly carry the allocation's variables too; only a step was started by srun.
    if (v.rank == kSlurm.rank && !environment("SLURM_STEP_ID")) continue;
    if (v.rank == kSlurm.rank && environment("RANK") && environment("MASTER_ADDR")) continue;
    launch.size = read_or(environment, v.size, 1);
    if (launch.size <= 1) continue;
    launch.launcher = Launcher::kMpi;
    launch.rank = read_or(environment, v.rank, 0);
    launch.local_rank = read_or(environment, v.local_rank, -1);
    return launch;
  }
  launch = Launch();
  if (!environment("RANK") || !environment("WORLD_SIZE")) return launch;

  const int size = read_integer(environment, "WORLD_SIZE", 1, INT_MAX);
  if (size == 1) return launch;
  if (!on_gpu) {
    throw ConfigError(
        format("WORLD_SIZE = %d, but ranks on CPU talk over MPI; start them with "
               "mpirun -np %d ./train ..., or unset RANK and WORLD_SIZE for one process",
               size, size));
  }
  launch.launcher = Launcher::kStore;
  launch.size = size;
  launch.rank = read_integer(environment, "RANK", 0, size - 1);
  launch.master_port = read_integer(environment, "MASTER_PORT", 1, 65535);
  launch.local_rank = read_or(environment, "LOCAL_RANK", -1);
  const char* address = environment("MASTER_ADDR");
  if (!address || !*address) {
    throw ConfigError("RANK and WORLD_SIZE are set but MASTER_ADDR is not; give it the host name or address of rank 0");
  }
  launch.master_address = address;
  return launch;
}

}  // namespace switchyard
