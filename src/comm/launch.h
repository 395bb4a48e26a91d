// Who started this process, read from the environment alone: nothing here touches MPI or a socket, so a rank is known
// before the first message and a single process never needs MPI.
#pragma once

#include <functional>
#include <string>

namespace switchyard {

enum class Launcher {
  kNone,   // one process by itself
  kMpi,    // mpirun, mpiexec, or srun with a PMI
  kStore,  // RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: GPU ranks that meet without MPI
};

struct Launch {
  Launcher launcher = Launcher::kNone;
  int rank = 0;
  int size = 1;
  int local_rank = -1;         // -1: the environment does not say
  std::string master_address;  // of kStore
  int master_port = 0;
};

// Reads a variable; null when unset, as std::getenv.
using Environment = std::function<const char*(const char*)>;

// ConfigError: WORLD_SIZE > 1 on CPU without mpirun, a variable that is missing or no number, RANK beyond WORLD_SIZE.
Launch detect_launch(const Environment& environment, bool on_gpu);

}  // namespace switchyard
