#include "comm/control_channel.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kLongestMessage = 1ull << 30;
constexpr double kPatienceToMeet_s = 60;
constexpr std::chrono::seconds kPatienceToPart(2);

// Signals are for the main thread: a thread inherits the mask it is started under.
std::thread start_without_signals(std::function<void()> body) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::move(body));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

}  // namespace

ControlChannel::ControlChannel(int rank, int size, double timeout_s, const Control::ShareAddress& share_address)
    : rank_(rank),
      size_(size),
      timeout_(timeout_s),
      beat_(std::clamp(timeout_s / 5, 0.05, 5.0)),
      finished_(size, false),
      exceptions_at_start_(std::uncaught_exceptions()) {
  peers_ = meet(rank, size, std::max(timeout_s, kPatienceToMeet_s), share_address);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) throw RunError("cannot open a pipe for the control channel");
  wake_read_ = ends[0];
  wake_write_ = ends[1];
  last_beat_ = last_turn_ = Clock::now();
  for (Peer& peer : peers_) peer.last_heard = last_turn_;
  thread_ = start_without_signals([this] { run(); });
}

ControlChannel::~ControlChannel() {
  if (std::uncaught_exceptions() > exceptions_at_start_) {
    report_failure("an exception ended it");
  } else {
    post(Frame{FrameType::kFinish, ""});
  }
  thread_.join();
  ::close(wake_read_);
  ::close(wake_write_);
}

void ControlChannel::post(Frame frame) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    posted_.push_back(std::move(frame));
  }
  const ssize_t written = ::write(wake_write_, "", 1);
  (void)written;  // a full pipe wakes the thread as well
}

std::vector<std::string> ControlChannel::all_gather(const std::string& what, const std::string& mine) {
  const std::uint64_t sequence = next_sequence_++;
  post(FrameWriter().add(sequence).add(what).add(mine).frame(FrameType::kGather));
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return results_.count(sequence) > 0; });
  auto node = results_.extract(sequence);
  return std::move(node.mapped());
}

void ControlChannel::report_failure(const std::string& reason) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (std::exchange(leaving_, true)) return;
  }
  post(FrameWriter().add(reason).frame(FrameType::kFailure));
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, kPatienceToPart, [this] { return told_; });
}

void ControlChannel::run() {
  while (!over_) {
    wait_for_events();
    take_posted();
    if (!over_) take_received();
    if (!over_) keep_time();
    if (!over_) flush();
  }
}

void ControlChannel::wait_for_events() {
  std::vector<pollfd> entries = {{wake_read_, POLLIN, 0}};
  for (const Peer& peer : peers_) {
    const short events = peer.out.empty() ? POLLIN : POLLIN | POLLOUT;
    if (peer.socket.is_open()) entries.push_back({peer.socket.fd(), events, 0});
  }
  const int wait_ms = static_cast<int>(std::max(1.0, beat_.count() * 1000 / 2));
  ::poll(entries.data(), entries.size(), wait_ms);
  char bytes[64];
  while (::read(wake_read_, bytes, sizeof bytes) == sizeof bytes) {}
}

void ControlChannel::take_posted() {
  std::vector<Frame> posted;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    posted.swap(posted_);
  }
  for (const Frame& frame : posted) {
    if (rank_ == 0) {
      handle(0, frame);
    } else {
      send(peers_[0], frame);
    }
  }
  flush();
}

void ControlChannel::take_received() {
  for (Peer& peer : peers_) {
    if (!peer.socket.is_open()) continue;
    const std::size_t before = peer.in.size();
    const Transfer transfer = receive_available(peer.socket, peer.in);
    if (peer.in.size() > before) peer.last_heard = Clock::now();
    try {
      while (const auto frame = take_frame(peer.in, kLongestMessage)) {
        handle(peer.rank, *frame);
        if (over_) return;
      }
    } catch (const RunError& error) {
      lost(peer, error.what());
      return;
    }
    if (transfer == Transfer::kClosed) {
      peer.socket.close();
      if (!peer.finished) lost(peer, "connection lost; it was killed or crashed");
      if (over_) return;
    }
  }
}

void ControlChannel::handle(int from_rank, const Frame& frame) {
  switch (frame.type) {
    case FrameType::kHeartbeat:
      break;
    case FrameType::kGather:
      add_part(from_rank, frame);
      break;
    case FrameType::kResult:
      deliver(frame);
      break;
    case FrameType::kFailure:
      end_run(from_rank, FrameReader(frame).text());
      break;
    case FrameType::kDeath:
      leave(FrameReader(frame).text());
      break;
    case FrameType::kFinish:
      finish(from_rank);
      break;
    default:
      throw RunError("a control message of an unknown type");
  }
}

void ControlChannel::add_part(int from_rank, const Frame& frame) {
  FrameReader reader(frame);
  const std::uint64_t sequence = reader.integer();
  const std::string what = reader.text();
  Gathering& gathering = gatherings_[sequence];
  if (gathering.parts.empty()) gathering = {what, from_rank, std::vector<std::string>(size_), size_};
  if (what != gathering.what) {
    end_run(from_rank, format("it is at \"%s\" where rank %d is at \"%s\": a bug", what.c_str(), gathering.first_rank,
                              gathering.what.c_str()));
    return;
  }
  gathering.parts[from_rank] = reader.text();
  if (--gathering.missing > 0) return;

  FrameWriter writer;
  writer.add(sequence);
  for (const std::string& part : gathering.parts) writer.add(part);
  gatherings_.erase(sequence);
  const Frame result = writer.frame(FrameType::kResult);
  send_to_all(result);
  flush();
  deliver(result);
}

void ControlChannel::deliver(const Frame& result) {
  FrameReader reader(result);
  const std::uint64_t sequence = reader.integer();
  std::vector<std::string> parts(size_);
  for (std::string& part : parts) part = reader.text();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    results_[sequence] = std::move(parts);
  }
  changed_.notify_all();
}

// Rank 0 leaves last: it answers only when all have finished, and the others stay connected until it does.
void ControlChannel::finish(int from_rank) {
  if (rank_ != 0) {
    over_ = true;
    return;
  }
  finished_[from_rank] = true;
  if (from_rank > 0) peers_[from_rank - 1].finished = true;
  if (!std::all_of(finished_.begin(), finished_.end(), [](bool done) { return done; })) return;
  send_to_all(Frame{FrameType::kFinish, ""});
  drain();
  over_ = true;
}

void ControlChannel::lost(Peer& peer, const std::string& how) { end_run(peer.rank, how); }

void ControlChannel::keep_time() {
  const auto now = Clock::now();
  // A process that was itself stopped (a laptop asleep, Ctrl-Z) knows nothing about the silence of the others.
  if (now - last_turn_ > timeout_ / 2) {
    for (Peer& peer : peers_) peer.last_heard = now;
  }
  last_turn_ = now;
  if (now - last_beat_ >= beat_) {
    last_beat_ = now;
    send_to_all(Frame{FrameType::kHeartbeat, ""});
  }
  for (Peer& peer : peers_) {
    if (!peer.socket.is_open() || peer.finished || now - peer.last_heard < timeout_) continue;
    lost(peer, format("silent for %.0f s (parallel.timeout_s); its host or network stopped", timeout_.count()));
    return;
  }
}

void ControlChannel::send(Peer& peer, const Frame& frame) {
  if (peer.socket.is_open()) append_frame(peer.out, frame);
}

void ControlChannel::send_to_all(const Frame& frame) {
  for (Peer& peer : peers_) send(peer, frame);
}

// A broken connection shows when it is read.
void ControlChannel::flush() {
  for (Peer& peer : peers_) {
    if (peer.socket.is_open() && !peer.out.empty()) send_available(peer.socket, peer.out);
  }
}

// Sends what is left and waits until the others hang up. Closing at once could reset a connection on which they still
// send, and take back what they have not read.
void ControlChannel::drain() {
  const auto deadline = Clock::now() + kPatienceToPart;
  for (Peer& peer : peers_) {
    while (peer.socket.is_open()) {
      if (send_available(peer.socket, peer.out) == Transfer::kClosed) break;
      if (!peer.out.empty() ? !wait_writable(peer.socket, deadline) : !wait_readable(peer.socket, deadline)) break;
      if (receive_available(peer.socket, peer.in) == Transfer::kClosed) break;
      peer.in.clear();
    }
  }
}

std::string ControlChannel::host_of(int rank) const {
  for (const Peer& peer : peers_) {
    if (peer.rank == rank) return peer.host;
  }
  return host_name();
}

// Rank 0 decides and tells everyone; on another rank this is what it sees of rank 0 itself.
void ControlChannel::end_run(int dead_rank, const std::string& reason) {
  const std::string message =
      format("rank %d on host %s died: %s", dead_rank, host_of(dead_rank).c_str(), reason.c_str());
  if (rank_ == 0) {
    send_to_all(FrameWriter().add(message).frame(FrameType::kDeath));
    flush();
  }
  leave(message);
}

// The end of this process, unless it is on its way out with a reason of its own. _exit: the main thread may be inside a
// collective that will never end, and destructors would wait for it.
void ControlChannel::leave(const std::string& message) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    told_ = true;
    over_ = leaving_;
  }
  if (!over_) log::error(message + "; the run ends");
  if (rank_ == 0) drain();
  if (!over_) ::_exit(kExitRunError);
  changed_.notify_all();
}

}  // namespace switchyard
