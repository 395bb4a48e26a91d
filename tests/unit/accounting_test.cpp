#include "model/accounting.h"

#include <gtest/gtest.h>

#include <functional>

#include "model/layer_rules.h"
#include "model/linear_layers.h"
#include "model/memory_estimate.h"

namespace switchyard {
namespace {

Config moe_8x2() {
  Config config;
  config.moe.use_moe = true;
  config.moe.expert_hidden_mult = 2;
  return config;
}

// SwiGLU, weighted norms, grouped-query attention, no value embeddings: the second family.
Config llama(int layers, int width, int heads, int kv_heads, int head_dim, int experts, int top_k, int hidden,
             int seq) {
  Config config;
  ModelConfig& model = config.model;
  model.n_layer = layers;
  model.n_embd = width;
  model.n_head = heads;
  model.n_kv_head = kv_heads;
  model.head_dim = head_dim;
  model.seq_len = seq;
  model.vocab_size = 32000;
  model.mlp = "swiglu";
  model.norm_weight = true;
  model.value_embeds = model.resid_scalars = model.embed_norm = false;
  config.moe.use_moe = experts > 0;
  config.moe.n_experts = experts;
  config.moe.d_expert = hidden;
  config.router.top_k = top_k;
  return config;
}

TEST(Accounting, EightExpertsTopTwo) {
  const Accounting a = account(moe_8x2());
  EXPECT_EQ(a.total, 456206616);
  EXPECT_EQ(a.active, 286337304);
  EXPECT_EQ(a.inactive, 169869312);
  EXPECT_EQ(a.scaling_parameters, 110176512);
  EXPECT_EQ(a.flops_per_token, 774305280);
  const std::pair<PartKind, std::int64_t> parts[] = {{PartKind::kTokenEmbedding, 25165824},
                                                     {PartKind::kHead, 25165824},
                                                     {PartKind::kValueEmbedding, 150994944},
                                                     {PartKind::kValueGate, 2304},
                                                     {PartKind::kAttention, 28311552},
                                                     {PartKind::kRouter, 73728},
                                                     {PartKind::kExperts, 226492416},
                                                     {PartKind::kScalars, 24},
                                                     {PartKind::kDenseMlp, 0},
                                                     {PartKind::kSharedExperts, 0},
                                                     {PartKind::kNorms, 0}};
  for (const auto& [kind, count] : parts) EXPECT_EQ(a.part(kind).total, count) << part_name(kind);
}

TEST(Accounting, VariantsOfD12) {
  struct Case {
    const char* name;
    std::function<void(Config&)> change;
    std::int64_t total, active;
    double flops;
  };
  const Case cases[] = {
      {"dense twin", [](Config& c) { c.moe.use_moe = false; }, 286263576, 286263576, 773862912},
      {"width given, not multiplied", [](Config& c) { c.moe.d_expert = 1536; }, 456206616, 286337304, 774305280},
      {"expert width 4 D", [](Config& c) { c.moe.expert_hidden_mult = 4; }, 682699032, 342960408, 1.1140e9},
      {"one shared expert", [](Config& c) { c.moe.n_shared_experts = 1; }, 484518168, 314648856, 9.4417e8},
      {"value gate of 12 channels", [](Config& c) { c.model.value_gate_channels = 12; }, 456205176, 286335864,
       774296640},
      {"32 experts, top 4", [](Config& c) { c.moe.n_experts = 32, c.router.top_k = 4, c.moe.d_expert = 768; },
       456206616 + 226492416 + 24 * 768 * 12, 286337304 + 24 * 768 * 12, 774305280 + 6.0 * 24 * 768 * 12},
  };
  for (const Case& c : cases) {
    Config config = moe_8x2();
    c.change(config);
    const Accounting a = account(config);
    EXPECT_EQ(a.total, c.total) << c.name;
    EXPECT_EQ(a.active, c.active) << c.name;
    EXPECT_NEAR(static_cast<double>(a.flops_per_token), c.flops, c.flops * 5e-5) << c.name;
  }
}

// One module of 324 D + 64 parameters, of them 320 D multiply, once a layer.
TEST(Accounting, InlDynamics) {
  struct Case {
    int layers, width;
    std::int64_t shared;
  };
  for (const Case& c : {Case{8, 1024, 331840}, Case{17, 1536, 497728}, Case{32, 4096, 1327168}})
    for (const bool shared : {true, false}) {
      Config with = llama(c.layers, c.width, 16, 4, 64, 8, 2, 4096, 2048), without = with;
      with.model.inl.enabled = true;
      with.model.inl.shared = shared;
      const Accounting a = account(with), b = account(without);
      EXPECT_EQ(a.total - b.total, shared ? c.shared : c.layers * c.shared);
      EXPECT_EQ(a.flops_per_token - b.flops_per_token, c.layers * 6 * std::int64_t{320} * c.width);
      with.model.inl.mode = "lite";
      EXPECT_EQ(account(with).total - b.total, (shared ? 1 : c.layers) * std::int64_t{c.width});
      EXPECT_EQ(account(with).flops_per_token, b.flops_per_token);
    }
}

TEST(Accounting, FlexibleFfnAndAveragingWarmUp) {
  Config config = moe_8x2();
  const Accounting plain = account(config);
  config.moe.flexible_ffn = true;
  const std::int64_t dense = std::int64_t{12} * 2 * 768 * 3072;
  EXPECT_EQ(account(config).total - plain.total, dense + 12);
  EXPECT_EQ(account(config).flops_per_token - plain.flops_per_token, 6 * dense);
  EXPECT_EQ(plain.averaging_flops_per_token - plain.flops_per_token, 6 * plain.inactive);
}

TEST(Accounting, LlamaFamily) {
  struct Case {
    const char* name;
    Config config;
    std::int64_t total, active;
    double flops;
  };
  const Case cases[] = {
      {"small 4x1", llama(8, 1024, 16, 16, 64, 4, 1, 4096, 2048), 501793792, 199803904, 1.203e9},
      {"medium 8x2", llama(18, 1024, 16, 4, 64, 8, 2, 4096, 2048), 1924846592, 565892096, 3.651e9},
      {"large 16x2", llama(17, 1536, 12, 4, 128, 16, 2, 6144, 2048), 7906472448, 1168323072, 7.356e9},
      {"mixtral 8x2", llama(32, 4096, 32, 8, 128, 8, 2, 14336, 4096), 46702792704, 12879925248, 8.293e10},
  };
  for (const Case& c : cases) {
    const Accounting a = account(c.config);
    EXPECT_EQ(a.total, c.total) << c.name;
    EXPECT_EQ(a.active, c.active) << c.name;
    EXPECT_NEAR(static_cast<double>(a.flops_per_token), c.flops, c.flops * 5e-4) << c.name;
  }
}

// 3 layers, width 8, 2 heads of 4 that share one kv head, vocabulary 10, seq 16.
Config tiny() {
  Config config;
  ModelConfig& model = config.model;
  model.n_layer = 3;
  model.n_embd = 8;
  model.head_dim = 4;
  model.n_kv_head = 1;
  model.seq_len = 16;
  model.vocab_size = 10;
  model.value_gate_channels = 2;
  return config;
}

TEST(Accounting, HandCountOfGroupedQueriesGluAndWindows) {
  Config config = tiny();
  config.model.mlp = "swiglu";
  config.model.ffn_hidden = 5;
  config.model.window_pattern = "SL";
  config.model.norm_weight = config.model.qk_norm_weight = true;
  const Accounting a = account(config);
  const std::int64_t attention = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8), gates = 2 * 2, mlp = 3 * 3 * 8 * 5, head = 80;
  EXPECT_EQ(a.part(PartKind::kAttention).total, attention);
  EXPECT_EQ(a.part(PartKind::kValueEmbedding).total, 2 * 10 * 4);  // layers 0 and 2
  EXPECT_EQ(a.part(PartKind::kValueGate).total, gates);
  EXPECT_EQ(a.part(PartKind::kDenseMlp).total, mlp);
  EXPECT_EQ(a.part(PartKind::kNorms).total, (2 * 3 + 1) * 8 + 3 * 2 * 4);
  EXPECT_EQ(a.scaling_parameters, attention + gates + mlp + head);
  // Windows 8, 16 and, because the last layer always sees all, 16.
  EXPECT_EQ(a.attention_flops_per_token, 12 * 8 * (8 + 16 + 16));
  EXPECT_EQ(a.flops_per_token, 6 * a.scaling_parameters + a.attention_flops_per_token);
}

TEST(Accounting, HandCountOfMoeOnSomeLayers) {
  Config config = tiny();
  config.moe.use_moe = true;
  config.moe.first_dense = 1;
  config.moe.n_experts = 4;
  config.moe.d_expert = 6;
  config.moe.n_shared_experts = 2;
  config.moe.d_shared = 3;
  config.router.top_k = 1;
  const Accounting a = account(config);
  EXPECT_EQ(a.part(PartKind::kDenseMlp).total, 2 * 8 * 32);
  EXPECT_EQ(a.part(PartKind::kRouter).total, 2 * 4 * 8);
  EXPECT_EQ(a.part(PartKind::kExperts).total, 2 * 4 * 2 * 8 * 6);
  EXPECT_EQ(a.part(PartKind::kExperts).active, 2 * 1 * 2 * 8 * 6);
  EXPECT_EQ(a.part(PartKind::kSharedExperts).active, 2 * 2 * 8 * 6);
  EXPECT_EQ(a.inactive, 2 * 3 * 2 * 8 * 6);
}

TEST(Accounting, TiedHeadCostsFlopsButNoParameters) {
  Config untied = tiny(), tied = tiny();
  tied.model.tie_head = true;
  EXPECT_EQ(account(untied).total - account(tied).total, 80);
  EXPECT_EQ(account(untied).flops_per_token, account(tied).flops_per_token);
}

TEST(Accounting, EqualActiveWidthDiffersByTheRoutersOnly) {
  Config dense = moe_8x2();
  dense.moe.use_moe = false;
  EXPECT_EQ(account(moe_8x2()).flops_per_token - account(dense).flops_per_token, 6 * 12 * 8 * 768);
}

TEST(Accounting, TableShowsExactAndRounded) {
  const std::string table = parameter_table(account(moe_8x2()));
  for (const char* text :
       {"456,206,616", "286,337,304", "169,869,312", "(456M / 286M / 170M)", "774,305,280", "routers"}) {
    EXPECT_NE(table.find(text), std::string::npos) << text << " in\n" << table;
  }
  EXPECT_EQ(table.find("dense mlp"), std::string::npos);
}

TEST(Accounting, Utilisation) {
  EXPECT_NEAR(model_flops_utilisation(8 * 89500.0, 774305280, 989, 8), 0.07, 0.001);
  EXPECT_EQ(model_flops_utilisation(1000, 1e9, 0, 1), 0);
}

TEST(LayerRules, WhichLayersAreWhat) {
  Config config = moe_8x2();
  config.moe.first_dense = 1;
  config.moe.moe_freq = 2;
  for (int layer = 0; layer < 12; ++layer) {
    EXPECT_EQ(is_moe_layer(config, layer), layer % 2 == 1) << layer;
    EXPECT_EQ(has_value_embedding(config.model, layer), layer % 2 == 1) << layer;
  }
  EXPECT_EQ(moe_layer_count(config), 6);
}

// The linear layers and the parameter table are counted apart; they must agree.
TEST(LinearLayers, HoldEveryMatrixOfTheTable) {
  Config shared = moe_8x2();
  shared.moe.n_shared_experts = 2;
  shared.moe.first_dense = 3;
  for (const Config& config : {moe_8x2(), shared, tiny(), llama(8, 1024, 16, 4, 64, 4, 1, 4096, 2048)}) {
    std::int64_t sum = 0;
    for (const LinearLayer& layer : linear_layers(config)) {
      const bool stack = layer.name.find(".experts.") != std::string::npos;
      sum += layer.rows * layer.cols * (stack ? config.moe.n_experts : 1);
    }
    const Accounting a = account(config);
    EXPECT_EQ(sum, a.scaling_parameters + a.inactive);
  }
}

TEST(Memory, CountsBytesAParameter) {
  Config config = moe_8x2();
  config.train.micro_batch = 64;
  const MemoryEstimate one = estimate_memory(config, 1), eight = estimate_memory(config, 8);
  EXPECT_EQ(one.weights, 4 * 456206616LL);
  EXPECT_EQ(one.compute_copies, 2 * 456206616LL);
  EXPECT_EQ(one.optimizer, 4 * 254877696LL + 8 * (456206616LL - 254877696));
  EXPECT_EQ(eight.optimizer, (one.optimizer + 7) / 8);
  EXPECT_EQ(eight.activations, one.activations);
  // 65,536 tokens a micro-batch fit a GPU of 80 GB well, and are not nothing.
  EXPECT_GT(one.activations, 10LL << 30);
  EXPECT_LT(one.total(), 40LL << 30);
  config.precision.mode = "fp32";
  EXPECT_EQ(estimate_memory(config, 1).compute_copies, 0);
  config.precision.mode = "fp8";
  EXPECT_EQ(estimate_memory(config, 1).compute_copies - one.compute_copies, 28311552 + 25165824);
  EXPECT_NE(memory_advice(config, one).find("train.micro_batch = 64"), std::string::npos);
}

}  // namespace
}  // namespace switchyard
