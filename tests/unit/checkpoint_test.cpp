#include "train/checkpoint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>

#include "base/error.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

Snapshot snapshot_of(double value, std::int64_t elements = 64) {
  Snapshot snapshot;
  snapshot.weights = {{"head", at::full({elements}, value)}, {"blocks.0.attn.qkv", at::full({3, 5}, -value)}};
  snapshot.optimizer = {{"head.moment1", at::full({elements}, value / 2)}, {"scale", at::full({}, value, at::kDouble)}};
  snapshot.state_json = "{\"step\": " + std::to_string(static_cast<int>(value)) + "}";
  snapshot.given_config_json = "{\"name\": \"test\"}";
  snapshot.resolved_config_json = "{\"name\": \"test\", \"model\": {}}";
  return snapshot;
}

double first_weight(const std::string& path) {
  return load_checkpoint(path).weights.at(0).second.reshape(-1)[0].item<double>();
}

class Checkpoint : public ::testing::Test {
 protected:
  Checkpoint() : run_(::testing::TempDir() + "switchyard_run_" + std::to_string(::getpid())) { fs::remove_all(run_); }
  ~Checkpoint() override { fs::remove_all(run_); }

  std::vector<std::string> entries() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(run_ + "/checkpoints"))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
  std::string step(int number) const {
    std::string digits = std::to_string(number);
    return run_ + "/checkpoints/step-" + std::string(8 - digits.size(), '0') + digits;
  }

  std::string run_;
};

std::string error_of(const std::function<void()>& action) {
  try {
    action();
    return "";
  } catch (const std::exception& error) { return error.what(); }
}

TEST_F(Checkpoint, ComesBackWhole) {
  CheckpointFolder folder(run_, 2);
  EXPECT_FALSE(folder.latest_valid());
  EXPECT_FALSE(fs::exists(run_));  // looking creates nothing
  const Snapshot written = snapshot_of(7);
  const std::string path = folder.save(7, written, 2.5);
  EXPECT_EQ(path, step(7));
  const Snapshot read = load_checkpoint(path);
  EXPECT_EQ(read.state_json, written.state_json);
  EXPECT_EQ(read.given_config_json, written.given_config_json);
  EXPECT_EQ(read.resolved_config_json, written.resolved_config_json);
  for (const auto& [names, tensors] :
       {std::pair(&written.weights, &read.weights), std::pair(&written.optimizer, &read.optimizer)}) {
    ASSERT_EQ(names->size(), tensors->size());
    for (const auto& [name, tensor] : *names) {
      const auto found =
          std::find_if(tensors->begin(), tensors->end(), [&](const auto& pair) { return pair.first == name; });
      ASSERT_NE(found, tensors->end()) << name;
      EXPECT_TRUE(found->second.equal(tensor)) << name;
    }
  }
  const auto info = folder.latest_valid();
  ASSERT_TRUE(info);
  EXPECT_EQ(info->step, 7);
  EXPECT_EQ(*info->held_out_loss, 2.5);
  EXPECT_EQ(load_weights(path).size(), 2u);
  EXPECT_EQ(load_config_json(path, true), written.resolved_config_json);
}

TEST_F(Checkpoint, KeepsTheNewestAndTheBest) {
  CheckpointFolder folder(run_, 2);
  const double losses[] = {3.0, 1.0, 2.0, NAN, 2.5};
  for (int i = 0; i < 5; ++i) folder.save(i + 1, snapshot_of(i + 1), losses[i]);
  EXPECT_EQ(entries(), (std::vector<std::string>{"BEST", "step-00000002", "step-00000004", "step-00000005"}));
  EXPECT_EQ(folder.best()->step, 2);
  EXPECT_EQ(find_checkpoint(run_), step(2));
  EXPECT_EQ(find_checkpoint(run_ + "/"), step(2));
  EXPECT_EQ(find_checkpoint(run_ + "/checkpoints"), step(2));
  EXPECT_EQ(find_checkpoint(step(5)), step(5));
  folder.save(6, snapshot_of(6), 0.5);
  EXPECT_EQ(entries(), (std::vector<std::string>{"BEST", "step-00000005", "step-00000006"}));
  folder.save(7, snapshot_of(7));  // not evaluated: does not compete
  EXPECT_EQ(folder.best()->step, 6);
  EXPECT_EQ(folder.latest_valid()->step, 7);
}

TEST_F(Checkpoint, NeverDeletesWhatItJustWroteBecauseOfLaterSteps) {
  CheckpointFolder folder(run_, 1);
  folder.save(100, snapshot_of(100));
  folder.save(3, snapshot_of(3));
  EXPECT_EQ(first_weight(step(3)), 3);
  EXPECT_EQ(first_weight(step(100)), 100);
}

TEST_F(Checkpoint, TheSameStepAgainReplaces) {
  CheckpointFolder folder(run_, 2);
  folder.save(4, snapshot_of(1));
  folder.save(4, snapshot_of(2));
  EXPECT_EQ(entries(), (std::vector<std::string>{"step-00000004"}));
  EXPECT_EQ(first_weight(step(4)), 2);
}

TEST_F(Checkpoint, DamageIsNamedAndPassedOver) {
  struct Case {
    const char* name;
    std::function<void(const std::string&)> damage;
    const char* message;
  };
  const Case cases[] = {
      {"truncated weights", [](const std::string& p) { fs::resize_file(p + "/weights.safetensors", 100); },
       "truncated"},
      {"flipped byte",
       [](const std::string& p) {
         std::fstream file(p + "/optimizer.safetensors", std::ios::in | std::ios::out | std::ios::binary);
         file.seekp(-1, std::ios::end);
         file.put('Z');
       },
       "checksum"},
      {"missing state", [](const std::string& p) { fs::remove(p + "/state.json"); }, "state.json is missing"},
      {"no manifest", [](const std::string& p) { fs::remove(p + "/MANIFEST.json"); }, "interrupted"},
      {"manifest cut", [](const std::string& p) { fs::resize_file(p + "/MANIFEST.json", 30); }, "MANIFEST.json"},
      {"manifest empty", [](const std::string& p) { fs::resize_file(p + "/MANIFEST.json", 0); }, "MANIFEST.json"},
  };
  for (const Case& c : cases) {
    fs::remove_all(run_);
    CheckpointFolder folder(run_, 3);
    folder.save(1, snapshot_of(1));
    folder.save(2, snapshot_of(2));
    c.damage(step(2));
    const std::string message = error_of([&] { load_checkpoint(step(2)); });
    EXPECT_NE(message.find(c.message), std::string::npos) << c.name << ": " << message;
    ASSERT_TRUE(folder.latest_valid()) << c.name;
    EXPECT_EQ(folder.latest_valid()->step, 1) << c.name;
    folder.save(2, snapshot_of(20));
    EXPECT_EQ(first_weight(step(2)), 20) << c.name;
    EXPECT_EQ(folder.latest_valid()->step, 2) << c.name;
  }
}

TEST_F(Checkpoint, LeftoversOfAnInterruptedSaveAreCleaned) {
  CheckpointFolder folder(run_, 2);
  folder.clean();  // nothing is there yet
  folder.save(1, snapshot_of(1));
  fs::create_directories(run_ + "/checkpoints/writing-step-00000002");
  fs::create_directories(step(3));  // renamed, not marked yet
  EXPECT_EQ(folder.latest_valid()->step, 1);
  folder.clean();
  EXPECT_EQ(entries(), (std::vector<std::string>{"step-00000001"}));
  // Killed while step 1 was being replaced: the old one is still valid, and goes back to its place.
  fs::rename(step(1), run_ + "/checkpoints/replaced-step-00000001");
  fs::create_directories(step(1));
  EXPECT_EQ(folder.latest_valid()->step, 1);
  folder.clean();
  EXPECT_EQ(entries(), (std::vector<std::string>{"step-00000001"}));
  EXPECT_EQ(first_weight(step(1)), 1);
}

TEST_F(Checkpoint, NewerFormatIsAnErrorNotAWarning) {
  CheckpointFolder folder(run_, 2);
  folder.save(1, snapshot_of(1));
  folder.save(2, snapshot_of(2));
  Manifest manifest = read_manifest(step(2));
  manifest.version = kCheckpointVersion + 1;
  write_manifest(step(2), manifest);
  for (const auto& action : std::vector<std::function<void()>>{
           [&] { folder.latest_valid(); }, [&] { load_weights(step(2)); }, [&] { load_checkpoint(step(2)); }}) {
    EXPECT_NE(error_of(action).find("format version 2, this program reads up to 1"), std::string::npos)
        << error_of(action);
  }
}

TEST_F(Checkpoint, NothingThereSaysWhatWasLookedFor) {
  EXPECT_NE(error_of([&] { find_checkpoint(run_); }).find(run_), std::string::npos);
  EXPECT_NE(error_of([&] { load_checkpoint(run_); }).find("no checkpoint at"), std::string::npos);
}

// A limit on file size stands for a full disk: writes fail in the same place with another errno.
TEST_F(Checkpoint, FullDiskKeepsThePreviousAndSaysTheSizes) {
  CheckpointFolder folder(run_, 2);
  folder.save(1, snapshot_of(1));
  const Snapshot large = snapshot_of(2, 100000);
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{200000, 200000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string message = error_of([&] { folder.save(2, large); });
    const bool said =
        message.find("195.31 KiB of ") != std::string::npos && message.find("step 2") != std::string::npos;
    if (!said) std::fprintf(stderr, "%s\n", message.c_str());
    ::_exit(said ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(entries(), (std::vector<std::string>{"step-00000001"}));
  EXPECT_EQ(first_weight(step(1)), 1);
}

TEST_F(Checkpoint, KilledAtAnyMomentLeavesOneThatLoads) {
  CheckpointFolder folder(run_, 2);
  folder.save(1, snapshot_of(1, 20000), 9.0);
  std::int64_t known = 1;
  for (int trial = 0; trial < 25; ++trial) {
    const Snapshot next = snapshot_of(static_cast<double>(known + 1), 20000);
    const Snapshot after = snapshot_of(static_cast<double>(known + 2), 20000);
    const pid_t child = ::fork();
    if (child == 0) {
      folder.save(known + 1, next, 8.0);
      folder.save(known + 1, next, 8.5);  // replaces
      folder.save(known + 2, after);
      ::pause();
    }
    ::usleep(static_cast<useconds_t>(300 + trial * 1700));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const auto latest = folder.latest_valid();
    ASSERT_TRUE(latest) << trial;
    ASSERT_GE(latest->step, known) << trial;
    EXPECT_EQ(first_weight(latest->path), static_cast<double>(latest->step)) << trial;
    known = latest->step;
  }
  folder.clean();
  for (const std::string& name : entries()) EXPECT_TRUE(name == "BEST" || name.rfind("step-", 0) == 0) << name;
}

}  // namespace
}  // namespace switchyard
