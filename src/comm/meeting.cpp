#include "comm/meeting.h"

#include <algorithm>
#include <sstream>

#include "base/text.h"
#include "comm/frame.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kLongestGreeting = 4096;  // a stranger must not make us allocate

Clock::time_point in_seconds(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

bool send_frame(Peer& peer, const Frame& frame, Clock::time_point deadline) {
  append_frame(peer.out, frame);
  while (!peer.out.empty()) {
    if (send_available(peer.socket, peer.out) == Transfer::kClosed) return false;
    if (!peer.out.empty() && !wait_writable(peer.socket, deadline)) return false;
  }
  return true;
}

std::optional<Frame> receive_frame(Peer& peer, FrameType expected, Clock::time_point deadline) {
  for (;;) {
    try {
      if (auto frame = take_frame(peer.in, kLongestGreeting)) { return frame->type == expected ? frame : std::nullopt; }
    } catch (const RunError&) {
      return std::nullopt;  // not one of ours: the caller hangs up
    }
    if (!wait_readable(peer.socket, deadline)) return std::nullopt;
    if (receive_available(peer.socket, peer.in) == Transfer::kClosed && peer.in.empty()) return std::nullopt;
  }
}

struct Address {
  std::string token, machine, host;
  int port = 0;
  std::vector<std::string> candidates;
};

std::string write_address(const Address& a) {
  return a.token + " " + a.machine + " " + a.host + " " + std::to_string(a.port) + " " + join(a.candidates, " ");
}

Address read_address(const std::string& text) {
  Address a;
  std::istringstream in(text);
  in >> a.token >> a.machine >> a.host >> a.port;
  for (std::string candidate; in >> candidate;) a.candidates.push_back(candidate);
  return a;
}

// Who is at the other end of an accepted connection; false for a stranger.
bool identify(Peer& peer, const Address& self, int size, Clock::time_point deadline) {
  const auto hello = receive_frame(peer, FrameType::kHello, deadline);
  if (!hello) return false;
  try {
    FrameReader reader(*hello);
    if (reader.text() != self.token) return false;
    peer.rank = static_cast<int>(reader.integer());
    peer.host = reader.text();
  } catch (const RunError&) { return false; }
  if (peer.rank < 1 || peer.rank >= size) return false;
  return send_frame(peer, FrameWriter().add(self.token).add(self.host).frame(FrameType::kWelcome), deadline);
}

std::vector<Peer> accept_all(const Socket& listener, const Address& self, int size, double patience_s) {
  const auto deadline = in_seconds(patience_s);
  std::vector<Peer> peers(size - 1);
  for (int connected = 0; connected < size - 1;) {
    Peer peer;
    peer.socket = accept_until(listener, deadline);
    if (!peer.socket.is_open()) {
      std::vector<std::string> missing;
      for (int r = 1; r < size; ++r) {
        if (!peers[r - 1].socket.is_open()) missing.push_back(std::to_string(r));
      }
      throw RunError(
          format("rank(s) %s did not reach rank 0 (host %s, port %d) within %.0f s; "
                 "does a firewall stand between the hosts?",
                 join(missing, ", ").c_str(), self.host.c_str(), self.port, patience_s));
    }
    if (!identify(peer, self, size, std::min(deadline, in_seconds(5)))) continue;
    Peer& place = peers[peer.rank - 1];
    if (!place.socket.is_open()) ++connected;  // a rank that lost its first connection may come again
    place = std::move(peer);
  }
  for (Peer& peer : peers) {
    if (!send_frame(peer, Frame{FrameType::kStart, ""}, in_seconds(5))) {
      throw RunError(format("rank %d on host %s was lost while the ranks met", peer.rank, peer.host.c_str()));
    }
  }
  return peers;
}

// One attempt at one address; a closed socket when nobody, or somebody else, answers.
Peer greet(const std::string& candidate, const Address& main, int rank) {
  Peer peer;
  peer.socket = connect_until(candidate, main.port, in_seconds(3));
  if (!peer.socket.is_open()) return Peer();
  const auto hello = FrameWriter().add(main.token).add(static_cast<std::uint64_t>(rank)).add(host_name());
  auto answer_by = in_seconds(10);
  if (!send_frame(peer, FrameWriter(hello).frame(FrameType::kHello), answer_by)) return Peer();
  const auto welcome = receive_frame(peer, FrameType::kWelcome, answer_by);
  if (!welcome || FrameReader(*welcome).text() != main.token) return Peer();
  peer.host = main.host;
  return peer;
}

Peer connect_to_main(const Address& main, int rank, double patience_s) {
  const auto deadline = in_seconds(patience_s);
  std::vector<std::string> candidates = main.candidates;
  candidates.push_back(main.host);
  if (main.machine == machine_id()) candidates.insert(candidates.begin(), "localhost");
  while (Clock::now() < deadline) {
    for (const std::string& candidate : candidates) {
      Peer peer = greet(candidate, main, rank);
      if (!peer.socket.is_open()) continue;
      if (receive_frame(peer, FrameType::kStart, deadline)) return peer;
      throw RunError(format("rank %d reached rank 0 on host %s, but not all ranks did within %.0f s", rank,
                            main.host.c_str(), patience_s));
    }
    wait_readable(Socket(), std::min(deadline, in_seconds(0.2)));  // a pause before the next round
  }
  throw RunError(
      format("rank %d on host %s cannot reach rank 0 at any of %s, port %d; does a firewall stand between the hosts?",
             rank, host_name().c_str(), join(candidates, ", ").c_str(), main.port));
}

}  // namespace

std::vector<Peer> meet(int rank, int size, double patience_s, const Control::ShareAddress& share_address) {
  if (rank == 0) {
    Address self;
    const Socket listener = listen_anywhere(&self.port);
    self.token = random_token();
    self.machine = machine_id();
    self.host = host_name();
    self.candidates = own_addresses();
    share_address(write_address(self));
    return accept_all(listener, self, size, patience_s);
  }
  const Address main = read_address(share_address(""));
  std::vector<Peer> peers;
  peers.push_back(connect_to_main(main, rank, patience_s));
  return peers;
}

}  // namespace switchyard
