// The thread behind Control: one on every rank, connected to rank 0's. It carries all-gathers, sends heartbeats, and
// ends the process when the run cannot go on.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/control.h"
#include "comm/frame.h"
#include "comm/meeting.h"

namespace switchyard {

class ControlChannel {
 public:
  ControlChannel(int rank, int size, double timeout_s, const Control::ShareAddress& share_address);
  ~ControlChannel();  // waits until every rank destroys its own; reports an exception that it unwinds

  std::vector<std::string> all_gather(const std::string& what, const std::string& mine);
  void report_failure(const std::string& reason);  // returns when the others know, or after two seconds

 private:
  // One all-gather on rank 0, complete when every rank's part is there. Ranks may be one ahead of each other.
  struct Gathering {
    std::string what;  // as the first part named it
    int first_rank = 0;
    std::vector<std::string> parts;
    int missing = 0;
  };

  void post(Frame frame);  // from the caller's thread to ours
  // All below run on our thread.
  void run();
  void wait_for_events();
  void take_posted();
  void take_received();
  void handle(int from_rank, const Frame& frame);
  void add_part(int from_rank, const Frame& frame);
  void finish(int from_rank);
  void deliver(const Frame& result);
  void lost(Peer& peer, const std::string& how);
  void keep_time();
  void send(Peer& peer, const Frame& frame);
  void send_to_all(const Frame& frame);
  void flush();
  void drain();
  void end_run(int dead_rank, const std::string& reason);
  void leave(const std::string& message);
  std::string host_of(int rank) const;

  const int rank_, size_;
  const std::chrono::duration<double> timeout_, beat_;
  std::vector<Peer> peers_;
  Clock::time_point last_beat_, last_turn_;
  std::map<std::uint64_t, Gathering> gatherings_;
  std::vector<bool> finished_;  // on rank 0, by rank
  bool over_ = false;           // our thread returns
  int wake_read_ = -1, wake_write_ = -1;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<Frame> posted_;
  std::map<std::uint64_t, std::vector<std::string>> results_;
  std::uint64_t next_sequence_ = 0;
  bool leaving_ = false;  // this rank reported its own failure and exits by itself
  bool told_ = false;     // ... and the others know

  int exceptions_at_start_;
  std::thread thread_;
};

}  // namespace switchyard
