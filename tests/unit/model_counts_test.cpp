// The accounting, the list of linear layers and the built model are three descriptions of one thing.
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "model/accounting.h"
#include "model/gpt.h"
#include "model/linear_layers.h"

namespace switchyard {
namespace {

PartKind part_of(ParameterKind kind) {
  switch (kind) {
    case ParameterKind::kTokenEmbedding:
      return PartKind::kTokenEmbedding;
    case ParameterKind::kValueEmbedding:
      return PartKind::kValueEmbedding;
    case ParameterKind::kHead:
      return PartKind::kHead;
    case ParameterKind::kAttention:
      return PartKind::kAttention;
    case ParameterKind::kMlp:
      return PartKind::kDenseMlp;
    case ParameterKind::kRouter:
      return PartKind::kRouter;
    case ParameterKind::kExpert:
      return PartKind::kExperts;
    case ParameterKind::kSharedExpert:
      return PartKind::kSharedExperts;
    case ParameterKind::kValueGate:
      return PartKind::kValueGate;
    case ParameterKind::kNorm:
      return PartKind::kNorms;
    case ParameterKind::kInlController:
      return PartKind::kInlControllers;
    case ParameterKind::kInlVector:
      return PartKind::kInlVectors;
    default:
      return PartKind::kScalars;
  }
}

Config small() {
  Config config;
  config.model.n_layer = 3;
  config.model.n_embd = 64;
  config.model.head_dim = 16;
  config.model.vocab_size = 96;
  config.model.seq_len = 32;
  return config;
}

struct Family {
  const char* name;
  Config config;
};

std::vector<Family> families() {
  std::vector<Family> result{{"nanochat dense", small()}};
  Config llama = small();
  llama.model.mlp = "swiglu";
  llama.model.n_kv_head = 2;
  llama.model.norm_weight = llama.model.qk_norm_weight = llama.model.tie_head = true;
  llama.model.value_embeds = llama.model.resid_scalars = llama.model.embed_norm = false;
  result.push_back({"llama dense, tied head", llama});
#ifdef SWITCHYARD_WITH_MOE
  for (const Family& dense : std::vector<Family>(result)) {
    Config config = dense.config;
    config.moe.use_moe = true;
    config.moe.first_dense = 1;
    config.moe.n_experts = 4;
    config.moe.d_expert = 32;
    config.moe.n_shared_experts = 2;
    result.push_back({"sparse", config});
    Config cosine = config, by_token = config;
    cosine.router.semantic = true;
    cosine.router.semantic_dim = 12;
    cosine.router.init = "normal";
    result.push_back({"cosine router", cosine});
    by_token.router.type = "token_id";
    result.push_back({"routed by token", by_token});
    const Config plain = config;
    config.moe.capacity_factor = 1.25;
    config.moe.overflow = "null_expert";
    config.moe.null_expert = "ffn";
    config.moe.token_importance = "learned";
    config.moe.zero_experts = {1, 2, 2};
    result.push_back({"null expert with weights, zero experts, importance", config});
    config.moe.null_expert = "constant";
    result.push_back({"constant null expert", config});
    config = plain;
    config.moe.flexible_ffn = true;
    config.model.block = "parallel";
    result.push_back({"flexible, parallel", config});
  }
#endif
  for (const char* mode : {"adaptive", "lite"})
    for (const bool shared : {true, false}) {
      Config config = small();
      config.model.inl.enabled = true, config.model.inl.mode = mode, config.model.inl.shared = shared;
      result.push_back({"INL", config});
    }
  return result;
}

TEST(ModelCounts, BuiltModelHoldsWhatTheTableSays) {
  for (const Family& family : families()) {
    Gpt model(family.config);
    std::map<PartKind, std::int64_t> counted;
    for (const auto& parameter : model.store().all()) counted[part_of(parameter->kind)] += parameter->count();
    for (const Part& part : account(family.config).parts)
      EXPECT_EQ(counted[part.kind], part.total) << family.name << ": " << part_name(part.kind);
  }
}

#ifdef SWITCHYARD_WITH_MOE
// moe_spec T2 and 5.3: any token may use a null expert, so it is active, and its FLOPs are not counted.
TEST(ModelCounts, ANullExpertIsActiveAndCostsNoFlops) {
  Config config = small();
  config.moe.use_moe = true;
  config.moe.n_experts = 4;
  config.moe.d_expert = 32;
  const Accounting without = account(config);
  config.moe.overflow = "null_expert";
  config.moe.null_expert = "ffn";
  const Accounting with = account(config);
  EXPECT_EQ(with.total - without.total, 3 * 2 * 64 * 32);
  EXPECT_EQ(with.active - without.active, 3 * 2 * 64 * 32);
  EXPECT_EQ(with.flops_per_token, without.flops_per_token);
}
#endif

TEST(ModelCounts, EveryLinearLayerHasItsParameter) {
  for (const Family& family : families()) {
    Gpt model(family.config);
    for (const LinearLayer& layer : linear_layers(family.config)) {
      if (layer.name == "head" && family.config.model.tie_head) continue;
      const Parameter* parameter = model.store().find(layer.name + ".weight");
      if (!parameter) parameter = model.store().find(layer.name);
      ASSERT_NE(parameter, nullptr) << family.name << ": " << layer.name;
      EXPECT_EQ(parameter->logical_matrices(), layer.matrices) << family.name << ": " << layer.name;
      EXPECT_EQ(parameter->shape.back(), layer.cols) << family.name << ": " << layer.name;
      EXPECT_EQ(parameter->shape[parameter->shape.size() - 2], layer.rows) << family.name << ": " << layer.name;
    }
  }
}

}  // namespace
}  // namespace switchyard
