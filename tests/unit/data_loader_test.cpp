#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "base/error.h"
#include "data/loader.h"
#include "data/permutation.h"
#include "data/prefetch.h"
#include "data_fixture.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kHash = 7;

// Tokens 0, 1, 2, …, so a token tells its place.
std::shared_ptr<const ShardSet> counting(const TemporaryFolder& folder, int tokens, int shards = 3) {
  std::vector<std::string> paths;
  int next = 0;
  for (int s = 0; s < shards; ++s) {
    const int end = s + 1 == shards ? tokens : next + tokens / shards;
    std::vector<int> ids(static_cast<std::size_t>(end - next));
    std::iota(ids.begin(), ids.end(), next);
    next = end;
    paths.push_back(folder / ("s" + std::to_string(s)));
    ShardWriter writer(paths.back(), kHash, 100000);
    writer.add(ids, ids.size());
    writer.finish();
  }
  return std::make_shared<ShardSet>(paths, kHash, 100000);
}

TEST(Permutation, IsABijectionOfEverySize) {
  for (const std::uint64_t size : {1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097}) {
    for (const std::uint64_t key : {1ull, 99ull}) {
      const Permutation permutation(size, key);
      std::set<std::uint64_t> places;
      for (std::uint64_t i = 0; i < size; ++i) places.insert(permutation(i));
      EXPECT_EQ(places.size(), size);
      EXPECT_LT(*places.rbegin(), size);
    }
  }
}

TEST(Permutation, Shuffles) {
  const std::uint64_t size = 10000;
  const Permutation first(size, 1), second(size, 2);
  int fixed = 0, equal = 0, neighbours = 0;
  double sum = 0;
  for (std::uint64_t i = 0; i + 1 < size; ++i) {
    fixed += first(i) == i;
    equal += first(i) == second(i);
    neighbours += first(i) + 1 == first(i + 1);
    if (i < size / 10) sum += static_cast<double>(first(i));
  }
  EXPECT_LT(fixed, 12);
  EXPECT_LT(equal, 12);
  EXPECT_LT(neighbours, 12);
  EXPECT_NEAR(sum / (size / 10.0), size / 2.0, 4 * 0.289 * size / std::sqrt(size / 10.0));
  EXPECT_EQ(Permutation(1ull << 40, 3).size(), 1ull << 40);
  EXPECT_LT(Permutation(1ull << 40, 3)((1ull << 40) - 1), 1ull << 40);
}

// First token of every window that micro-batches [0, count) read.
std::vector<int> starts(const Loader& loader, std::int64_t first, std::int64_t count) {
  std::vector<int> all;
  for (std::int64_t m = first; m < first + count; ++m) {
    const Batch batch = loader.read(m);
    for (std::size_t row = 0; row < batch.windows.size(); ++row) {
      all.push_back(batch.inputs[row * batch.inputs.size() / batch.windows.size()]);
    }
  }
  return all;
}

TEST(Loader, EveryWindowOncePerEpochInAnotherOrder) {
  const TemporaryFolder folder;
  const Loader loader(counting(folder, 1000), {3, 16, 5});  // 62 windows: the epoch ends inside a micro-batch
  ASSERT_EQ(loader.windows_per_epoch(), 62);
  const std::vector<int> two_epochs = starts(loader, 0, 42);
  const auto epoch = [&](int e) {
    return std::vector<int>(two_epochs.begin() + 62 * e, two_epochs.begin() + 62 * (e + 1));
  };
  std::vector<int> first = epoch(0), second = epoch(1), expected(62);
  for (int i = 0; i < 62; ++i) expected[static_cast<std::size_t>(i)] = 16 * i;
  EXPECT_NE(first, second);
  EXPECT_NE(first, expected);
  std::sort(first.begin(), first.end());
  std::sort(second.begin(), second.end());
  EXPECT_EQ(first, expected);
  EXPECT_EQ(second, expected);
  EXPECT_EQ(loader.epoch_of(20), 0);
  EXPECT_EQ(loader.epoch_of(21), 1);
}

TEST(Loader, TargetsAreTheNextTokensAlsoAcrossShards) {
  const TemporaryFolder folder;
  const Loader loader(counting(folder, 1000, 7), {2, 50, 5});
  for (std::int64_t m = 0; m < 10; ++m) {
    std::vector<std::int64_t> inputs(100), targets(100), windows(2);
    loader.read(m, inputs.data(), targets.data(), windows.data());
    EXPECT_EQ(windows, (std::vector<std::int64_t>{2 * m, 2 * m + 1}));
    for (int row = 0; row < 2; ++row) {
      for (int i = 0; i < 50; ++i) {
        EXPECT_EQ(inputs[static_cast<std::size_t>(50 * row + i)], inputs[static_cast<std::size_t>(50 * row)] + i);
        EXPECT_EQ(targets[static_cast<std::size_t>(50 * row + i)], inputs[static_cast<std::size_t>(50 * row + i)] + 1);
      }
    }
  }
}

TEST(Loader, TheTextOfAStepDoesNotDependOnRanks) {
  const TemporaryFolder folder;
  const Loader loader(counting(folder, 2000), {2, 16, 5});
  for (std::int64_t step = 0; step < 5; ++step) {
    std::vector<std::vector<int>> texts;
    for (const int world_size : {1, 2, 4, 8}) {
      std::vector<int> text;
      for (int rank = 0; rank < world_size; ++rank) {
        const MicroBatchSchedule schedule{8, rank, world_size};
        for (std::int64_t i = 0; i < schedule.per_rank(); ++i) {
          const std::vector<int> part = starts(loader, schedule.number(step, i), 1);
          text.insert(text.end(), part.begin(), part.end());
        }
      }
      texts.push_back(text);
    }
    for (const auto& text : texts) EXPECT_EQ(text, texts[0]);
  }
}

TEST(Loader, ResumesAndRefusesOtherText) {
  const TemporaryFolder folder;
  const auto shards = counting(folder, 1000);
  const Loader loader(shards, {3, 16, 5});
  const LoaderState state = loader.state(17);
  EXPECT_EQ(starts(Loader(shards, {3, 16, state.seed}), state.next_micro_batch, 10), starts(loader, 17, 10));
  loader.check_resumable(state);
  struct Case {
    const char* named;
    LoaderOptions options;
  };
  for (const Case& c : {Case{"train.micro_batch was 3 and is now 4", {4, 16, 5}}, Case{"model.seq_len", {3, 8, 5}},
                        Case{"seed", {3, 16, 6}}}) {
    EXPECT_NE(message_of<ConfigError>([&] { Loader(shards, c.options).check_resumable(state); }).find(c.named),
              std::string::npos);
  }
  EXPECT_NE(message_of<RunError>([&] {
              Loader(shards, {1, 1000, 5});
            }).find("less than one window"),
            std::string::npos);
}

TEST(Prefetcher, GivesTheSameBatchesInOrder) {
  const TemporaryFolder folder;
  const Loader loader(counting(folder, 1000), {2, 16, 5});
  for (const int depth : {1, 3}) {
    const MicroBatchSchedule schedule{4, 1, 2};
    Prefetcher prefetcher(loader, schedule, 3, depth);
    for (std::int64_t step = 3; step < 10; ++step) {
      for (std::int64_t i = 0; i < 2; ++i) {
        const Batch given = prefetcher.next(), expected = loader.read(schedule.number(step, i));
        EXPECT_EQ(given.micro_batch, 4 * step + 2 + i);
        EXPECT_EQ(given.inputs, expected.inputs);
        EXPECT_EQ(given.windows, expected.windows);
      }
    }
  }  // destroyed while it waits: must not hang
}

TEST(HeldOut, ReadsEachTargetOnceAndCountsItsBytes) {
  const TemporaryFolder folder;
  const int tokens = 101, bos = 40;
  std::vector<std::uint16_t> bytes_of(tokens);
  for (int i = 0; i < tokens; ++i)
    bytes_of[static_cast<std::size_t>(i)] = static_cast<std::uint16_t>(i == bos ? 0 : 1 + i % 5);
  const HeldOut held_out(counting(folder, tokens), 4, 8, bytes_of, bos);
  EXPECT_EQ(held_out.count(), 4);  // 13 windows, the last of 4 targets
  std::vector<int> seen;
  std::int64_t bytes = 0, expected_bytes = 0, inputs = 0;
  for (std::int64_t b = 0; b < held_out.count(); ++b) {
    const Batch batch = held_out.read(b);
    ASSERT_EQ(batch.targets.size(), 32u);
    bytes += batch.source_bytes, inputs += batch.tokens;
    for (std::size_t i = 0; i < batch.targets.size(); ++i) {
      if (batch.targets[i] < 0) continue;
      seen.push_back(batch.targets[i]);
      EXPECT_EQ(batch.inputs[i], batch.targets[i] - 1);
    }
  }
  std::vector<int> expected;
  for (int i = 1; i < tokens; ++i) {
    if (i == bos) continue;
    expected.push_back(i);
    expected_bytes += bytes_of[static_cast<std::size_t>(i)];
  }
  EXPECT_EQ(seen, expected);
  EXPECT_EQ(bytes, expected_bytes);
  EXPECT_EQ(inputs, tokens - 1);
  EXPECT_EQ(HeldOut(counting(folder, tokens), 4, 8, bytes_of, bos, 64).count(), 2);
  EXPECT_EQ(held_out.read(3).windows, (std::vector<std::int64_t>{12, -1, -1, -1}));
}

}  // namespace
}  // namespace switchyard
