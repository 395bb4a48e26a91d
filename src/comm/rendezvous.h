// What a launcher gives besides rank and size: one text from rank 0 to all, enough to build the control channel on.
#pragma once

#include <memory>
#include <string>

#include "comm/launch.h"

namespace switchyard {

class Rendezvous {
 public:
  virtual ~Rendezvous() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Collective, once: returns rank 0's text on every rank.
  virtual std::string share(const std::string& text) = 0;
};

// Initializes MPI (finalized when destroyed, unless an exception is under way: the other ranks would be waited for).
// ConfigError when MPI sees another number of ranks than the launcher started.
std::unique_ptr<Rendezvous> make_mpi_rendezvous(const Launch& launch);

// c10d's TCPStore at MASTER_ADDR:MASTER_PORT. Rank 0 serves it, or torchrun's agent where that started the ranks.
std::unique_ptr<Rendezvous> make_store_rendezvous(const Launch& launch);

}  // namespace switchyard
