// World: which of how many processes this is, and the channel on which they talk as hosts. Made once, at the start of
// main, and destroyed last: its destructor waits for every rank, then finalizes MPI.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "comm/control.h"

namespace switchyard {

class Rendezvous;

struct WorldOptions {
  bool on_gpu = false;    // GPU ranks may also meet through RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
  double timeout_s = 45;  // a rank that is silent this long is declared dead
};

class World {
 public:
  // Meets the other ranks. ConfigError for a launch that cannot work (see launch.h), RunError when ranks do not meet.
  static std::unique_ptr<World> join(const WorldOptions& options);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  // among the ranks of this host, in rank order
  int local_size() const { return local_size_; }
  const std::string& host() const { return host_; }
  bool is_main() const { return rank_ == 0; }
  bool has_mpi() const { return has_mpi_; }
  Control& control() { return *control_; }

 private:
  World(std::unique_ptr<Rendezvous> rendezvous, bool has_mpi);
  void find_neighbours();

  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  bool has_mpi_ = false;
  std::string host_;
  std::unique_ptr<Rendezvous> rendezvous_;  // finalizes MPI; outlives control_, which is declared after it
  std::unique_ptr<Control> control_;
};

// Runs `body` and turns an exception into its exit code (ConfigError 2, everything else 1), logged, with the reason
// told to the other ranks. In a world of several ranks the failure of one leaves the process at once instead of
// returning: destructors and MPI_Finalize would wait for ranks that are themselves waiting for this one. Where all
// failed together (Control::try_together, agree_equal), all return, and the main rank alone logs.
int run_guarded(World& world, const std::function<int()>& body);

}  // namespace switchyard
