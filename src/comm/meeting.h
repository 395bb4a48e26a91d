// How the ranks find each other: rank 0 listens, its addresses reach the others through the launcher (MPI or a store),
// and every other rank connects and proves by a random token that it reached the right process of the right run.
#pragma once

#include <string>
#include <vector>

#include "comm/control.h"
#include "comm/socket.h"

namespace switchyard {

// The other end of a connection, with what was received and not yet understood and what is not yet sent.
struct Peer {
  int rank = 0;
  std::string host;
  Socket socket;
  std::string in, out;
  Clock::time_point last_heard;
  bool finished = false;  // said that it has nothing more to say: its end is no failure
};

// Rank 0 gets a peer for every other rank, in rank order; the others get rank 0. Returns when all are connected.
// RunError naming the ranks that did not come within `patience_s`, or the addresses that did not answer.
std::vector<Peer> meet(int rank, int size, double patience_s, const Control::ShareAddress& share_address);

}  // namespace switchyard
