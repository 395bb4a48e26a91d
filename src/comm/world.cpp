#include "comm/world.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "base/log.h"
#include "comm/launch.h"
#include "comm/rendezvous.h"
#include "comm/socket.h"

namespace switchyard {

World::World(std::unique_ptr<Rendezvous> rendezvous, bool has_mpi)
    : has_mpi_(has_mpi), host_(host_name()), rendezvous_(std::move(rendezvous)) {}

World::~World() = default;

std::unique_ptr<World> World::join(const WorldOptions& options) {
  const Launch launch = detect_launch([](const char* name) { return std::getenv(name); }, options.on_gpu);
  std::unique_ptr<Rendezvous> rendezvous;
  if (launch.launcher == Launcher::kMpi) rendezvous = make_mpi_rendezvous(launch);
  if (launch.launcher == Launcher::kStore) rendezvous = make_store_rendezvous(launch);

  std::unique_ptr<World> world(new World(std::move(rendezvous), launch.launcher == Launcher::kMpi));
  Control::ShareAddress share;
  if (Rendezvous* meeting = world->rendezvous_.get()) {
    world->rank_ = meeting->rank();
    world->size_ = meeting->size();
    share = [meeting](const std::string& address) { return meeting->share(address); };
  }
  log::set_rank(world->rank_, world->size_);
  world->control_ = std::make_unique<Control>(world->rank_, world->size_, options.timeout_s, share);
  world->find_neighbours();
  if (launch.local_rank >= 0) world->local_rank_ = launch.local_rank;
  return world;
}

void World::find_neighbours() {
  const std::vector<std::string> machines = control_->all_gather("machine", machine_id());
  local_rank_ = local_size_ = 0;
  for (int rank = 0; rank < size_; ++rank) {
    if (machines[rank] != machines[rank_]) continue;
    ++local_size_;
    if (rank < rank_) ++local_rank_;
  }
}

int run_guarded(World& world, const std::function<int()>& body) {
  int code = kExitRunError;
  std::string reason;
  try {
    return body();
  } catch (const ConfigError& error) {
    code = kExitConfigError;
    reason = error.what();
  } catch (const std::exception& error) { reason = error.what(); }
  if (world.is_main() || !world.control().failed_together()) log::error(reason);
  if (world.size() == 1 || world.control().failed_together()) return code;
  world.control().report_failure(reason);
  std::fflush(nullptr);
  ::_exit(code);
}

}  // namespace switchyard
