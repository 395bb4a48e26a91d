// Collectives and the control channel among real processes: mpirun -np N comm_ranks.
// With an argument it plays one fault for tests/faults/rank_death.sh: the last rank is killed, throws, is silent...
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/philox.h"
#include "base/text.h"
#include "comm/collectives.h"
#include "comm/ordered_sum.h"
#include "comm/stop_signal.h"
#include "comm/world.h"

namespace switchyard {
namespace {

#define EXPECT(condition) \
  if (!(condition)) throw RunError(format("check failed at %s:%d: %s", __FILE__, __LINE__, #condition))

// Value i of a rank: of all magnitudes, so that the order of a sum shows in its bits.
float value_of(int rank, std::size_t i) {
  static const float kMagnitudes[8] = {1e-3f, 1e-2f, 0.1f, 1, 10, 100, 1e3f, 1e4f};
  const Words4 words = philox(static_cast<std::uint64_t>(rank) + 1, i, 0);
  return (to_uniform(words.x) - 0.5f) * kMagnitudes[words.y % 8];
}

std::vector<float> values_of(int rank, std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = value_of(rank, i);
  return values;
}

std::vector<float> sum_in_rank_order(int size, std::size_t count) {
  std::vector<float> sum = values_of(0, count);
  for (int r = 1; r < size; ++r) {
    for (std::size_t i = 0; i < count; ++i) sum[i] += value_of(r, i);
  }
  return sum;
}

const std::size_t kCounts[] = {1, 2, 3, 1000, 4096, 300001, 1200007};  // below, at and beyond a chunk of the sum

void check_all_reduce(Collectives& c) {
  for (std::size_t count : kCounts) {
    const std::vector<float> expected = sum_in_rank_order(c.size(), count);
    for (int repeat = 0; repeat < 2; ++repeat) {
      std::vector<float> data = values_of(c.rank(), count);
      c.all_reduce_sum(data.data(), count, DType::kFloat32);
      EXPECT(data == expected);
    }
  }
}

void check_all_reduce_bfloat16(Collectives& c) {
  const std::size_t count = 3001;
  std::vector<std::uint16_t> data(count), expected(count);
  for (std::size_t i = 0; i < count; ++i) {
    float sum = 0;
    for (int r = 0; r < c.size(); ++r)
      sum = r == 0 ? bfloat16_to_float(float_to_bfloat16(value_of(0, i)))
                   : sum + bfloat16_to_float(float_to_bfloat16(value_of(r, i)));
    expected[i] = float_to_bfloat16(sum);
    data[i] = float_to_bfloat16(value_of(c.rank(), i));
  }
  c.all_reduce_sum(data.data(), count, DType::kBFloat16);
  EXPECT(data == expected);
}

void check_scatter_and_gather(Collectives& c) {
  for (std::size_t per_rank : kCounts) {
    const std::size_t count = per_rank * c.size();
    const std::vector<float> expected = sum_in_rank_order(c.size(), count);
    std::vector<float> in = values_of(c.rank(), count), out(per_rank), all(count);
    c.reduce_scatter_sum(in.data(), out.data(), per_rank, DType::kFloat32);
    EXPECT(in == values_of(c.rank(), count));
    EXPECT(std::equal(out.begin(), out.end(), expected.begin() + c.rank() * per_rank));
    c.all_gather(out.data(), all.data(), per_rank * sizeof(float));
    EXPECT(all == expected);
    // In place, as the gradient buckets use them.
    float* own = in.data() + c.rank() * per_rank;
    c.reduce_scatter_sum(in.data(), own, per_rank, DType::kFloat32);
    c.all_gather(own, in.data(), per_rank * sizeof(float));
    EXPECT(in == expected);
  }
}

void check_broadcast(Collectives& c) {
  for (int root = 0; root < c.size(); ++root) {
    std::vector<float> data = values_of(c.rank(), 5000);
    c.broadcast(data.data(), data.size() * sizeof(float), root);
    EXPECT(data == values_of(root, 5000));
  }
}

// Rank a sends b * a + b elements to rank b: some blocks are empty, all differ.
void check_all_to_all(Collectives& c) {
  const auto elements = [](int from, int to) {
    return static_cast<std::size_t>(from * to * 1000 + (from == to ? 0 : to));
  };
  std::vector<std::size_t> send, receive;
  std::vector<float> in, expected;
  for (int r = 0; r < c.size(); ++r) {
    send.push_back(elements(c.rank(), r) * sizeof(float));
    receive.push_back(elements(r, c.rank()) * sizeof(float));
    for (std::size_t i = 0; i < elements(c.rank(), r); ++i) in.push_back(value_of(c.rank() * 100 + r, i));
    for (std::size_t i = 0; i < elements(r, c.rank()); ++i) expected.push_back(value_of(r * 100 + c.rank(), i));
  }
  std::vector<float> out(expected.size());
  c.all_to_all_v(in.data(), send, out.data(), receive);
  EXPECT(out == expected);
}

// Many operations under way at once, waited for out of order, while the main thread talks over the control channel.
void check_overlap(Collectives& c, Control& control) {
  const std::size_t count = 50000;
  const std::vector<float> expected = sum_in_rank_order(c.size(), count);
  std::vector<std::vector<float>> data(20, values_of(c.rank(), count));
  std::vector<Pending> pending;
  for (auto& buffer : data) pending.push_back(c.start_all_reduce_sum(buffer.data(), count, DType::kFloat32));
  EXPECT(control.sum(std::int64_t{1}) == c.size());
  for (auto p = pending.rbegin(); p != pending.rend(); ++p) p->wait();
  for (const auto& buffer : data) EXPECT(buffer == expected);
}

void check_control(Control& control) {
  const int size = control.size(), rank = control.rank();
  const std::vector<std::string> all = control.all_gather("names", std::string(rank * 1000, 'x'));
  for (int r = 0; r < size; ++r) EXPECT(all[r].size() == r * 1000u);
  EXPECT(control.broadcast("id", "from " + std::to_string(rank), size - 1) == "from " + std::to_string(size - 1));
  EXPECT(control.max(static_cast<double>(rank)) == size - 1);
  EXPECT(control.max(std::int64_t{-rank}) == 0);
  EXPECT(std::isnan(control.max(rank == size - 1 ? NAN : 1.0)));
  double ordered = value_of(0, 3);
  for (int r = 1; r < size; ++r) ordered += static_cast<double>(value_of(r, 3));
  EXPECT(control.sum(static_cast<double>(value_of(rank, 3))) == ordered);
  EXPECT(!control.any(false));
  EXPECT(control.any(rank == size - 1));
  control.agree_equal("config", "a = 1\n");
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000; ++i) control.barrier();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (rank == 0) std::printf("a barrier of %d ranks takes %.0f us\n", size, seconds * 1000);
}

std::string refusal_of(Control& control, const std::string& mine) {
  try {
    control.try_together("config", [&] {
      if (!mine.empty()) throw ConfigError(mine);
    });
  } catch (const ConfigError& error) { return error.what(); }
  return "";
}

// What one rank refuses ends all of them; what all refuse is told once.
void check_refusals(Control& control) {
  const int last = control.size() - 1;
  EXPECT(refusal_of(control, "").empty());
  EXPECT(refusal_of(control, "no such key") == "no such key");
  EXPECT(refusal_of(control, control.rank() == last ? "no such file" : "") == format("rank %d: no such file", last));
}

void check_world(World& world) {
  EXPECT(world.has_mpi());
  EXPECT(world.local_size() == world.size());
  EXPECT(world.local_rank() == world.rank());
}

// One rank is asked to stop, in the middle of a step: all stop after the same number of steps.
void check_stop(World& world) {
  install_stop_signals();
  std::int64_t step = 0;
  for (;; ++step) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1 + world.rank()));
    if (step == 5 && world.rank() == world.size() - 1) ::kill(::getpid(), SIGTERM);
    if (world.control().any(stop_signal_received())) break;
  }
  clear_stop_signal();
  EXPECT(world.control().max(step) == step);
  EXPECT(step == 5);
}

int check_everything(World& world) {
  check_world(world);
  check_control(world.control());
  const auto collectives = make_host_collectives(world);
  check_all_reduce(*collectives);
  check_all_reduce_bfloat16(*collectives);
  check_scatter_and_gather(*collectives);
  check_broadcast(*collectives);
  check_all_to_all(*collectives);
  check_overlap(*collectives, world.control());
  check_stop(world);
  check_refusals(world.control());
  if (world.is_main()) std::printf("comm_ranks passed with %d ranks\n", world.size());
  return kExitOk;
}

// The last rank does what `fault` says while the others wait for it: odd ones in a collective, even ones in a barrier.
int play(const std::string& fault, World& world) {
  install_stop_signals();
  const auto collectives = make_host_collectives(world);
  std::vector<float> data(1000, 1.0f);
  collectives->all_reduce_sum(data.data(), data.size(), DType::kFloat32);
  const bool is_culprit = world.rank() == world.size() - 1 - (fault == "killed-main" ? world.size() - 1 : 0);
  if (fault == "config") world.control().agree_equal("config", is_culprit ? "train.seed = 7\n" : "train.seed = 1337\n");
  if (is_culprit) {
    if (fault == "killed" || fault == "killed-main") ::kill(::getpid(), SIGKILL);
    if (fault == "throws") throw RunError("the disk is full");
    if (fault == "aborts") std::abort();
    if (fault == "silent") ::kill(::getpid(), SIGSTOP);
    if (fault == "mismatch") world.control().any(false);
  }
  if (world.rank() % 2 == 1) collectives->all_reduce_sum(data.data(), data.size(), DType::kFloat32);
  world.control().barrier();
  std::printf("not reached\n");
  return kExitOk;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  using namespace switchyard;
  try {
    WorldOptions options;
    options.on_gpu = std::getenv("MASTER_ADDR") != nullptr;
    options.timeout_s = argc > 1 ? 2 : 45;
    const auto world = World::join(options);
    return run_guarded(*world, [&] {
      if (argc > 1 && std::string(argv[1]) == "control") return check_control(world->control()), kExitOk;
      return argc > 1 ? play(argv[1], *world) : check_everything(*world);
    });
  } catch (const ConfigError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return kExitConfigError;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return kExitRunError;
  }
}
