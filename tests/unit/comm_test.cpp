// What comm decides without a second process: who launched us, how a difference between ranks reads, ordered sums.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "base/error.h"
#include "comm/collectives.h"
#include "comm/control.h"
#include "comm/frame.h"
#include "comm/launch.h"
#include "comm/ordered_sum.h"
#include "comm/world.h"

namespace switchyard {
namespace {

using Variables = std::map<std::string, std::string>;

Environment environment_of(const Variables& variables) {
  return [&variables](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
}

struct LaunchCase {
  const char* what;
  Variables variables;
  bool on_gpu;
  Launcher launcher;
  int rank, size, local_rank;
};

const Variables kTorchrun = {
    {"RANK", "3"}, {"WORLD_SIZE", "8"}, {"MASTER_ADDR", "node1"}, {"MASTER_PORT", "29500"}, {"LOCAL_RANK", "1"}};

const std::vector<LaunchCase> kLaunches = {
    {"nothing", {}, false, Launcher::kNone, 0, 1, -1},
    {"mpirun of Open MPI",
     {{"OMPI_COMM_WORLD_RANK", "2"}, {"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}},
     false,
     Launcher::kMpi,
     2,
     4,
     0},
    {"mpirun with one rank",
     {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}},
     false,
     Launcher::kNone,
     0,
     1,
     -1},
    {"mpiexec of MPICH", {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}, false, Launcher::kMpi, 1, 2, -1},
    {"srun",
     {{"SLURM_PROCID", "5"}, {"SLURM_NTASKS", "6"}, {"SLURM_LOCALID", "1"}, {"SLURM_STEP_ID", "0"}},
     false,
     Launcher::kMpi,
     5,
     6,
     1},
    {"a batch script itself", {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "6"}}, false, Launcher::kNone, 0, 1, -1},
    {"torchrun's variables on GPU", kTorchrun, true, Launcher::kStore, 3, 8, 1},
    {"one process of torchrun", {{"RANK", "0"}, {"WORLD_SIZE", "1"}}, false, Launcher::kNone, 0, 1, -1},
};

TEST(Launch, IsReadFromTheEnvironment) {
  for (const LaunchCase& c : kLaunches) {
    SCOPED_TRACE(c.what);
    const Launch launch = detect_launch(environment_of(c.variables), c.on_gpu);
    EXPECT_EQ(launch.launcher, c.launcher);
    EXPECT_EQ(launch.rank, c.rank);
    EXPECT_EQ(launch.size, c.size);
    EXPECT_EQ(launch.local_rank, c.local_rank);
  }
}

struct BadLaunchCase {
  const char* what;
  Variables changed;  // of kTorchrun; "" removes
  bool on_gpu;
  const char* message_holds;
};

const std::vector<BadLaunchCase> kBadLaunches = {
    {"CPU ranks without mpirun", {}, false, "mpirun -np 8"},
    {"no address", {{"MASTER_ADDR", ""}}, true, "MASTER_ADDR"},
    {"no port", {{"MASTER_PORT", ""}}, true, "MASTER_PORT"},
    {"rank beyond the world", {{"RANK", "8"}}, true, "RANK = \"8\""},
    {"no number", {{"WORLD_SIZE", "eight"}}, true, "WORLD_SIZE = \"eight\""},
};

TEST(Launch, WhatCannotWorkIsNamed) {
  for (const BadLaunchCase& c : kBadLaunches) {
    SCOPED_TRACE(c.what);
    Variables variables = kTorchrun;
    for (const auto& [name, value] : c.changed) {
      if (value.empty()) {
        variables.erase(name);
      } else {
        variables[name] = value;
      }
    }
    try {
      detect_launch(environment_of(variables), c.on_gpu);
      ADD_FAILURE() << "no error";
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(c.message_holds), std::string::npos) << error.what();
    }
  }
}

TEST(Difference, NamesTheFirstKeyBothValuesAndTheRanks) {
  EXPECT_EQ(describe_difference("config", {"a = 1\nb = 2\n", "a = 1\nb = 2\n"}), "");
  EXPECT_EQ(describe_difference("config", {"a = 1\nb = 2\n", "a = 1\nb = 3\n", "a = 1\nb = 2\n"}),
            "the ranks have different config: b is 2 on ranks 0, 2 but 3 on rank 1; give every rank the same config");
  EXPECT_EQ(describe_difference("config", {"a = 1\nb = 2\n", "a = 1\nc = 2\n"}),
            "the ranks have different config: b is (missing) on rank 1 but 2 on rank 0 (and 1 more that differ); "
            "give every rank the same config");
  EXPECT_EQ(describe_difference("data", {"abc", "abd"}),
            "the ranks have different data: line 1 is abc on rank 0 but abd on rank 1; give every rank the same data");
  EXPECT_NE(describe_difference("config", {"a = 1\nb = 2\n", "b = 2\na = 1\n"}), "");
}

TEST(OrderedSum, IsTheSumInRankOrderForEveryLength) {
  for (std::size_t count : {0u, 1u, 7u, 1023u, 1024u, 1025u, 5000u}) {
    std::vector<std::vector<float>> values(3, std::vector<float>(count));
    std::vector<const float*> terms;
    for (int r = 0; r < 3; ++r) {
      for (std::size_t i = 0; i < count; ++i)
        values[r][i] = std::sin(0.7f * i + r) * std::pow(10.0f, static_cast<float>(r));
      terms.push_back(values[r].data());
    }
    std::vector<float> expected(count);
    for (std::size_t i = 0; i < count; ++i) expected[i] = (values[0][i] + values[1][i]) + values[2][i];
    ordered_sum(terms.data(), 3, values[1].data(), count);
    EXPECT_EQ(values[1], expected);
  }
}

TEST(Bfloat16, RoundsToNearestEvenAndKeepsSpecialValues) {
  EXPECT_EQ(float_to_bfloat16(1.0f), 0x3f80);
  EXPECT_EQ(float_to_bfloat16(1.00390625f), 0x3f80) << "half way, to even";
  EXPECT_EQ(float_to_bfloat16(1.01171875f), 0x3f82) << "half way, to even";
  EXPECT_TRUE(std::isinf(bfloat16_to_float(float_to_bfloat16(std::numeric_limits<float>::infinity()))));
  EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Frames, AreTakenWholeInOrderAndNeverBeyondTheLimit) {
  std::string buffer;
  append_frame(buffer, FrameWriter().add(7).add(std::string("text")).frame(FrameType::kGather));
  append_frame(buffer, Frame{FrameType::kHeartbeat, ""});
  const std::string all = buffer;
  for (std::size_t cut = 0; cut < 9; ++cut) {
    std::string part = all.substr(0, cut);
    EXPECT_FALSE(take_frame(part, 100).has_value());
  }
  const auto first = take_frame(buffer, 100);
  ASSERT_TRUE(first.has_value());
  FrameReader reader(*first);
  EXPECT_EQ(reader.integer(), 7u);
  EXPECT_EQ(reader.text(), "text");
  EXPECT_THROW(reader.integer(), RunError);
  EXPECT_EQ(take_frame(buffer, 100)->type, FrameType::kHeartbeat);
  EXPECT_TRUE(buffer.empty());
  std::string again = all;
  EXPECT_THROW(take_frame(again, 3), RunError);
}

TEST(World, OfOneNeedsNobody) {
  const auto world = World::join({});
  EXPECT_EQ(world->rank(), 0);
  EXPECT_EQ(world->size(), 1);
  EXPECT_EQ(world->local_size(), 1);
  EXPECT_FALSE(world->has_mpi());
  EXPECT_EQ(world->control().sum(2.5), 2.5);
  EXPECT_FALSE(world->control().any(false));
  world->control().agree_equal("config", "a = 1");
  const auto collectives = make_host_collectives(*world);
  float data[2] = {1, 2}, out[2] = {0, 0};
  collectives->all_reduce_sum(data, 2, DType::kFloat32);
  collectives->reduce_scatter_sum(data, out, 2, DType::kFloat32);
  EXPECT_EQ(out[1], 2);
  EXPECT_EQ(run_guarded(*world, []() -> int { throw ConfigError("key = value is wrong"); }), kExitConfigError);
  EXPECT_EQ(run_guarded(*world, []() -> int { throw RunError("gone"); }), kExitRunError);
}

}  // namespace
}  // namespace switchyard
