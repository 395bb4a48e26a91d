// The estimate of memory beside what the allocator counts, and beside the peaks measured on a GPU.
#include "model/memory_estimate.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "config/load.h"
#include "kernels/grouped_gemm.h"
#include "model/gpt.h"

namespace switchyard {
namespace {

// Bytes that torch's CPU allocator has given out and not taken back, from this object's making on.
class LiveBytes : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, std::int64_t change, std::size_t, std::size_t, c10::Device) override {
    now += change;
    peak = std::max(peak, now);
  }
  bool memoryProfilingEnabled() const override { return true; }
  std::int64_t now = 0, peak = 0;
};

struct MemoryCase {
  const char* name;
  Overrides overrides;
};

TEST(MemoryEstimateTest, IsWhatTheOperationsKeep) {
  at::set_num_threads(1);  // seconds are lost where cores are shared
  const Overrides base = {{"device", "cpu"},           {"precision.mode", "fp32"}, {"model.n_layer", "4"},
                          {"model.n_embd", "128"},     {"model.head_dim", "32"},   {"model.seq_len", "256"},
                          {"model.vocab_size", "512"}, {"train.micro_batch", "8"}, {"train.batch_tokens", "2048"}};
  const std::vector<MemoryCase> cases = {
      {"dense", {}},
      {"llama, grouped queries",
       {{"model.mlp", "swiglu"},
        {"model.n_kv_head", "2"},
        {"model.norm_weight", "true"},
        {"model.qk_norm_weight", "true"},
        {"model.tie_head", "true"},
        {"model.value_embeds", "false"},
        {"model.resid_scalars", "false"},
        {"model.embed_norm", "false"}}},
      {"parallel", {{"model.block", "parallel"}}},
      {"INL", {{"model.inl.enabled", "true"}}},
      {"INL lite, blocks computed again",
       {{"model.inl.enabled", "true"}, {"model.inl.mode", "lite"}, {"train.recompute", "block"}}},
      {"blocks computed again", {{"train.recompute", "block"}}},
#ifdef SWITCHYARD_WITH_MOE
      {"8 experts, blocks computed again",
       {{"moe.use_moe", "true"}, {"moe.expert_hidden_mult", "2"}, {"train.recompute", "block"}}},
      {"8 experts, computed again",
       {{"moe.use_moe", "true"}, {"moe.expert_hidden_mult", "2"}, {"train.recompute", "moe"}}},
      {"flexible", {{"moe.use_moe", "true"}, {"moe.expert_hidden_mult", "2"}, {"moe.flexible_ffn", "true"}}},
      {"8 experts", {{"moe.use_moe", "true"}, {"moe.expert_hidden_mult", "2"}}},
      {"32 small experts, shared ones, dense layers first",
       {{"moe.use_moe", "true"},
        {"moe.n_experts", "32"},
        {"moe.d_expert", "64"},
        {"router.top_k", "4"},
        {"moe.n_shared_experts", "1"},
        {"moe.first_dense", "1"}}},
      {"gated experts", {{"moe.use_moe", "true"}, {"model.mlp", "swiglu"}, {"moe.d_expert", "96"}}},
#endif
  };
  for (const MemoryCase& c : cases) {
    Overrides overrides = base;
    overrides.insert(overrides.end(), c.overrides.begin(), c.overrides.end());
    const Config config = parse_config("{}", "", overrides).config;
    Gpt model(config);
    ParameterStore& store = model.store();
    store.allocate(at::kCPU, at::kFloat, store.contiguous());
    store.initialize(1);
    model.prepare(at::kCPU, at::kFloat);
    StepContext step;
    step.training = true;
    step.seq_len = config.model.seq_len;
    const at::Tensor tokens = at::randint(config.model.vocab_size, {8 * 256}, at::kLong);
    torch::autograd::backward({model.forward(tokens, tokens, step).total}, {});  // makes what stays

    const auto live = std::make_shared<LiveBytes>();
    const c10::DebugInfoGuard counting(c10::DebugInfoKind::PROFILER_STATE, live);
    const MemoryEstimate estimate = estimate_memory(config, 1);
    {
      const ModelOutput output = model.forward(tokens, tokens, step);
      EXPECT_NEAR(1.0, static_cast<double>(live->now) / static_cast<double>(estimate.activations), 0.01) << c.name;
      torch::autograd::backward({output.total}, {});
    }
    EXPECT_NEAR(1.0, static_cast<double>(live->peak) / static_cast<double>(estimate.activations + estimate.workspace),
                0.1)
        << c.name;
  }
}

#ifdef SWITCHYARD_WITH_MOE
// Dropout comes between the products, which then leave the activation to be made again, and the rows of x.
// Rows in expert order too, with experts of which a weight gradient does not gather them again.
TEST(MemoryEstimateTest, SwigluInTheProductsKeepsItsActivationAndWideOnesTheirRows) {
  constexpr int kMost = kernels::kMostUnitsToGather / 2;  // gates are units too
  for (const int hidden : {128, kMost, kMost + 8, 2 * kMost, 2 * kMost + 8}) {
    const Overrides base = {{"device", "cuda"},         {"model.mlp", "swiglu"},
                            {"moe.use_moe", "true"},    {"router.top_k", "2"},
                            {"model.n_layer", "3"},     {"moe.d_expert", std::to_string(hidden)},
                            {"train.micro_batch", "4"}, {"model.seq_len", "256"}};
    const auto kept = [&](const char* key, const char* value) {
      Overrides overrides = base;
      overrides.emplace_back(key, value);
      return estimate_memory(parse_config("{}", "", overrides).config, 1).activations;
    };
    const std::int64_t tokens = 4 * 256, rows = 2 * tokens, bytes = rows * hidden * 2 * 3;
    const std::int64_t width = parse_config("{}", "", base).config.model.n_embd;
    const std::int64_t rows_of_x = hidden > kMost ? (rows - tokens) * width * 2 * 3 : 0;
    const std::int64_t all = kept("moe.expert_hidden_dropout", "0");
    EXPECT_EQ(all - kept("moe.expert_hidden_dropout", "0.1"), bytes + rows_of_x) << hidden;
    EXPECT_EQ(all - kept("train.recompute", "moe"), 3 * bytes + rows_of_x) << hidden;
  }
}
#endif

// The scores of a micro-batch, once, in 16 bits, where cuDNN makes attention's backward and they take at most 4 GiB.
TEST(MemoryEstimateTest, AFixedOrderOfAttentionsSumsBorrowsTheScores) {
  struct OrderedCase {
    const char *device, *mode, *head_dim;
    std::int64_t micro_batch, borrowed;  // sequences; bytes
  };
  const std::int64_t of_a_sequence = std::int64_t{6} * 1024 * 1024 * 2;  // of 6 heads of 128 channels
  for (const OrderedCase& c : std::vector<OrderedCase>{{"cuda", "bf16", "128", 64, 64 * of_a_sequence},
                                                       {"cuda", "bf16", "128", 256, 256 * of_a_sequence},
                                                       {"cuda", "bf16", "128", 512, 0},
                                                       {"cuda", "bf16", "32", 64, 4 * 64 * of_a_sequence},
                                                       {"cuda", "bf16", "64", 64, 0},
                                                       {"cuda", "fp32", "128", 64, 0},
                                                       {"cpu", "bf16", "128", 64, 0}}) {
    const auto workspace = [&](const char* deterministic) {
      return estimate_memory(load_config("dense_d12",
                                         {{"device", c.device},
                                          {"precision.mode", c.mode},
                                          {"train.deterministic", deterministic},
                                          {"model.head_dim", c.head_dim},
                                          {"model.n_head", std::to_string(768 / std::stoi(c.head_dim))},
                                          {"model.n_kv_head", "0"},
                                          {"model.vocab_size", "1024"},  // so that the head's turn is a small one
                                          {"train.micro_batch", std::to_string(c.micro_batch)}},
                                         SWITCHYARD_SOURCE_DIR)
                                 .config,
                             1)
          .workspace;
    };
    EXPECT_EQ(workspace("true") - workspace("false"), c.borrowed)
        << c.device << " " << c.mode << " " << c.head_dim << " " << c.micro_batch;
  }
}

// runs/LOG.md, one H200: the allocator's reserved peak of training, which holds its gaps too.
TEST(MemoryEstimateTest, IsNearWhatAGpuReserved) {
  struct Measured {
    const char* config;
    double gib;
  };
  for (const Measured& m :
       std::vector<Measured>{{"moe_8x2", 24.9}, {"moe_32x4", 27.0}, {"moe_64x8", 27.4}, {"dense_d12", 21.2}}) {
    const Config config =
        load_config(m.config, {{"device", "cuda"}, {"train.micro_batch", "64"}}, SWITCHYARD_SOURCE_DIR).config;
    const double gib = static_cast<double>(estimate_memory(config, 1).total()) / static_cast<double>(1 << 30);
    EXPECT_GT(gib, 0.9 * m.gib) << m.config;
    EXPECT_LT(gib, 1.05 * m.gib) << m.config;
  }
}

}  // namespace
}  // namespace switchyard
