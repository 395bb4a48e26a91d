// Held-out evaluation: what it counts, whatever the micro-batch.
#include "train/evaluate.h"

#include <gtest/gtest.h>

#include <memory>

#include "base/error.h"
#include "data/shards.h"
#include "data_fixture.h"
#include "small_model.h"
#include "train/device.h"

namespace switchyard {
namespace {

constexpr int kExperts = 4, kTopK = 2;

std::shared_ptr<const ShardSet> text(const TemporaryFolder& folder, int tokens) {
  std::vector<int> ids;
  for (int i = 0; i < tokens; ++i) ids.push_back(1 + i * i % (kSmallVocabulary - 1));
  ShardWriter writer(folder / "shard", 7, kSmallVocabulary);
  writer.add(ids, ids.size());
  writer.finish();
  return std::make_shared<ShardSet>(std::vector<std::string>{folder / "shard"}, 7, kSmallVocabulary);
}

TEST(Evaluate, CountsTheChoicesOfTextAloneWhateverTheMicroBatch) {
  const TemporaryFolder folder;
  for (const int tokens : {161, 156, 9}) {  // whole windows; a window cut short; less than one
    const auto shards = text(folder, tokens);
    Gpt model(small_sparse_model(kExperts, kTopK));
    model.store().allocate(at::kCPU, at::kFloat, model.store().contiguous());
    model.store().initialize(1);
    model.prepare(at::kCPU, at::kFloat);
    Control control(0, 1, 5, {});
    Evaluation first;
    for (const int micro_batch : {1, 3, 10, 64}) {
      SCOPED_TRACE(std::to_string(tokens) + " tokens, micro-batch " + std::to_string(micro_batch));
      const HeldOut held_out(shards, micro_batch, 16, std::vector<std::uint16_t>(kSmallVocabulary, 1), /*bos=*/0);
      const Evaluation found = *evaluate(model, held_out, at::kCPU, control, [] { return false; });
      EXPECT_EQ(found.targets, tokens - 1);
      for (std::int64_t layer = 0; layer < 2; ++layer)
        EXPECT_EQ(found.count_LE[layer].sum().item<std::int64_t>(), (tokens - 1) * kTopK);
      if (micro_batch == 1) first = found;
      EXPECT_NEAR(found.loss, first.loss, 1e-6);
      EXPECT_TRUE(at::equal(found.count_LE, first.count_LE));
    }
  }
}

TEST(GpuLimits, NameTheKeyAndTheNearestValues) {
  struct Case {
    const char* error;  // a part of it; empty: taken
    void (*change)(Config&);
  };
  for (const Case& c :
       {Case{"", [](Config&) {}},
        Case{"model.head_dim = 24: kernels for GPUs take multiples of 16, as 16 or 32 is",
             [](Config& c) { c.model.head_dim = 24; }},
        Case{"model.head_dim = 512: kernels for GPUs take multiples of 16, as 256 is",
             [](Config& c) { c.model.head_dim = 512; }},
        Case{"model.n_embd = 8200", [](Config& c) { c.model.n_embd = 8200; }},
        Case{"model.vocab_size = 1001: kernels for GPUs take multiples of 8, as 1000 or 1008 is",
             [](Config& c) { c.model.vocab_size = 1001; }},
        Case{"model.vocab_size = 2147483647: kernels for GPUs take multiples of 8, as 2147483640 is",
             [](Config& c) { c.model.vocab_size = 2147483647; }},
        Case{"router.top_k = 17: kernels for GPUs take up to 16", [](Config& c) { c.router.top_k = 17; }},
        Case{"moe.n_experts = 510", [](Config& c) { c.moe.n_experts = 510, c.moe.zero_experts.copy = 3; }},
        Case{"moe.d_expert = 4: kernels for GPUs take multiples of 8, as 8 is", [](Config& c) { c.moe.d_expert = 4; }},
        Case{"", [](Config& c) { c.moe.d_expert = 4, c.moe.backend = "reference"; }},
        Case{"", [](Config& c) { c.router.top_k = 17, c.moe.use_moe = false; }}}) {
    Config config = small_sparse_model(kExperts, kTopK);
    c.change(config);
    std::string error;
    try {
      check_gpu_limits(config);
    } catch (const ConfigError& refused) { error = refused.what(); }
    EXPECT_NE(error.find(c.error), std::string::npos) << error;
    EXPECT_EQ(error.empty(), *c.error == 0) << error;
  }
}

}  // namespace
}  // namespace switchyard
