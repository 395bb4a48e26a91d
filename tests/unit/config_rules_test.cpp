// Rules that span keys: what follows from what, what yields, what is refused, what is only warned of.
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/text.h"
#include "config/derive.h"
#include "config/load.h"
#include "config/validate.h"

namespace switchyard {
namespace {

struct Outcome {
  std::string error;
  std::vector<std::string> messages;
  ResolvedConfig resolved;
};

Outcome check(const std::string& json, int world_size = 1, bool dry_run = false, const Overrides& overrides = {}) {
  Outcome outcome;
  try {
    outcome.resolved = parse_config(json, "a.json", overrides);
    outcome.messages = validate(outcome.resolved, world_size, dry_run);
  } catch (const ConfigError& error) { outcome.error = error.what(); }
  return outcome;
}

TEST(ConfigRules, ConflictsAreRefusedWithKeysValuesAndRemedy) {
  struct Case {
    const char* json;
    std::vector<const char*> says;
    int world_size = 1;
  };
  for (
      const Case& c : std::vector<Case>{
          {R"({"model": {"n_embd": 100}})", {"model.n_embd = 100", "model.head_dim = 64", "64 or 128"}},
          {R"({"model": {"n_embd": 32}})", {"model.n_embd = 32", "choose n_embd 64"}},
          {R"({"model": {"n_head": 7}})", {"model.n_head = 7 does not divide model.n_embd = 768"}},
          {R"({"model": {"n_embd": 96, "n_head": 6, "n_kv_head": 4}})",
           {"model.n_kv_head = 4 does not divide model.n_head = 6; choose 1, 2, 3 or 6"}},
          {R"({"model": {"n_embd": 99, "head_dim": 33}})", {"model.head_dim = 33 is odd", "32 or 34"}},
          {R"({"model": {"depth": 4, "n_layer": 6}})", {"model.depth = 4 and model.n_layer = 6 disagree"}},
          {R"({"model": {"depth": 4, "aspect_ratio": 32, "n_embd": 256}})",
           {"model.n_embd = 256 disagrees", "which gives 128"}},
          {R"({"model": {"qk_norm": false, "qk_norm_weight": true}})",
           {"model.qk_norm_weight = true", "model.qk_norm = false"}},
          {R"({"model": {"n_embd": 64, "value_gate_channels": 65}})",
           {"model.value_gate_channels = 65 exceeds model.n_embd = 64; choose 1 to 64"}},
          {R"({"model": {"vocab_size": 256}})", {"model.vocab_size = 256 is too small", "at least 320"}},
          {R"({"model": {"window_pattern": "S", "seq_len": 1}, "train": {"micro_batch": 1}})",
           {"model.window_pattern", "model.seq_len = 1"}},
          {R"({"moe": {"use_moe": true}, "router": {"top_k": 9}})",
           {"router.top_k = 9 exceeds moe.n_experts = 8; choose 1 to 8"}},
          {R"({"moe": {"use_moe": true, "d_expert": 768, "expert_hidden_mult": 2}})",
           {"moe.d_expert = 768", "moe.expert_hidden_mult = 2", "give one"}},
          {R"({"moe": {"use_moe": true, "first_dense": 12}})",
           {"moe.first_dense = 12 leaves no sparse layer", "0 to 11"}},
          {R"({"device": "cpu", "moe": {"use_moe": true, "backend": "cuda"}})", {"moe.backend = cuda", "device = cpu"}},
          {R"({"moe": {"use_moe": true}, "router": {"score": "identity", "norm_topk_prob": true}})",
           {"router.norm_topk_prob = true", "router.score = identity"}},
          {R"({"moe": {"use_moe": true}, "router": {"score": "identity", "balance_loss": "cv_squared_topk"}})",
           {"router.balance_loss = cv_squared_topk", "router.score = identity"}},
          {R"({"moe": {"use_moe": true}, "router": {"init": "zeros", "tie_break": "lowest_index", "balance_loss": "cv_squared"}})",
           {"router.tie_break = lowest_index", "router.init = zeros", "router.balance_loss = cv_squared", "rotate"}},
          {R"({"train": {"steps": 10}, "optim": {"schedule": {"warmup_steps": 10}}})",
           {"optim.schedule.warmup_steps = 10", "train.steps = 10", "0 to 9"}},
          {R"({"train": {"batch_tokens": 40000, "micro_batch": 16}})",
           {"train.batch_tokens = 40000", "train.micro_batch 16", "model.seq_len 1024 = 16384", "32768 or 49152"}},
          {R"({"train": {"batch_tokens": 16384, "micro_batch": 16}})",
           {"train.batch_tokens = 16384", "3 ranks", "= 49152; choose 49152"},
           3},
          {R"({"train": {"batch_tokens": 1000}})",
           {"train.batch_tokens = 1000", "choose 16384, or another micro_batch"}},
          {R"({"train": {"resume": true, "init_from": "x"}})",
           {"train.resume = true", "train.init_from = \"x\"", "one of them"}},
          {R"({"name": "a/b"})", {"name = \"a/b\"", "without /"}},
          {R"({"device": "cpu", "train": {"cuda_graph": true}})",
           {"train.cuda_graph = true needs a GPU", "device = cpu"}},
          {R"({"train": {"cuda_graph": true}, "moe": {"use_moe": true, "backend": "reference"}})",
           {"train.cuda_graph = true", "moe.backend = reference"}},
          {R"({"device": "cpu", "precision": {"mode": "fp8"}})", {"precision.mode = fp8 needs a GPU", "device = cpu"}},
          {R"({"precision": {"mode": "fp8", "fp8_min_align": 24}})", {"precision.fp8_min_align = 24", "16 or 32"}},
          {R"({"data": {"tokenizer": "no/such.model"}})", {"data.tokenizer = \"no/such.model\" is not a file"}},
          {R"({"data": {"corpus": "no/such/folder"}})", {"data.corpus = \"no/such/folder\"", "torch_python"}},
      }) {
    const std::string error = check(c.json, c.world_size).error;
    for (const char* part : c.says)
      EXPECT_NE(error.find(part), std::string::npos) << c.json << "\n" << error << "\nlacks: " << part;
  }
}

TEST(ConfigRules, AnUntouchedDefaultYieldsAndTheLogSaysSo) {
  struct Case {
    const char* json;
    const char* note;
    int world_size = 1;
  };
  for (const Case& c : std::vector<Case>{
           {R"({"moe": {"use_moe": true, "n_experts": 1}})",
            "router.top_k: the default 2 yields to moe.n_experts = 1; now 1"},
           {R"({"moe": {"use_moe": true}, "router": {"score": "identity"}})",
            "router.norm_topk_prob: the default true yields to router.score = identity; now false"},
           {R"({"moe": {"use_moe": true}, "router": {"tie_break": "lowest_index", "balance_loss": "cv_squared"}})",
            "router.init: the default zeros yields to router.tie_break = lowest_index; now normal"},
           {R"({"model": {"n_head": 6}})", "model.head_dim: the default 64 yields to model.n_head = 6; now 128"},
           {R"({"model": {"n_embd": 16, "head_dim": 8}})",
            "model.value_gate_channels: the default 32 yields to model.n_embd = 16; now 16"},
           {R"({"optim": {"matrix_optimizer": "adamw"}})",
            "optim.router_optimizer: the default muon yields to optim.matrix_optimizer = adamw; now adamw"},
           {R"({"device": "cpu"})", "precision.mode: the default bf16 yields to device = cpu; now fp32"},
           {R"({"model": {"seq_len": 1000}})",
            "train.batch_tokens: the default 524288 yields to model.seq_len = 1000; now 528000"},
           {R"({"train": {"batch_tokens": 8192}})",
            "train.micro_batch: the default 16 yields to train.batch_tokens = 8192; now 8"},
           {R"({"train": {"batch_tokens": 8192}})",
            "train.micro_batch: the default 16 yields to train.batch_tokens = 8192; now 2", 4},
           {R"({"train": {"micro_batch": 3}})",
            "train.batch_tokens: the default 524288 yields to train.micro_batch = 3; now 525312"},
       }) {
    const Outcome outcome = check(c.json, c.world_size);
    EXPECT_EQ(outcome.error, "") << c.json;
    EXPECT_EQ(outcome.messages, std::vector<std::string>{c.note}) << c.json;
  }
  EXPECT_TRUE(check("{}").messages.empty());
}

TEST(ConfigRules, WhatHasNoEffectIsWarnedOf) {
  struct Case {
    const char* json;
    const char* warning;
  };
  for (const Case& c : std::vector<Case>{
           {R"({"moe": {"n_experts": 4}, "router": {"top_k": 9}})",
            "moe.use_moe = false: the model is dense, and without effect are moe.n_experts, router.top_k"},
           {R"({"model": {"aspect_ratio": 32}})", "model.aspect_ratio is set but has no effect without model.depth"},
           {R"({"model": {"init_std": 0.1}})", "model.init_std is set but has no effect without model.init = llama"},
           {R"({"model": {"value_embeds": false, "value_gate_channels": 8}})",
            "model.value_gate_channels is set but has no effect"},
           {R"({"model": {"tie_head": true}, "optim": {"adamw": {"head_lr": 1}}})",
            "optim.adamw.head_lr is set but has no effect"},
           {R"({"model": {"window_pattern": "SSSSSSSSSSSSL"}})", "more letters than model.n_layer = 12"},
           {R"({"moe": {"use_moe": true, "d_shared": 64}})",
            "moe.d_shared is set but has no effect without moe.n_shared_experts"},
           {R"({"moe": {"use_moe": true, "init_std": 0.1}})", "moe.init_std is set but has no effect"},
           {R"({"moe": {"use_moe": true}, "router": {"init_std": 0.1}})", "router.init_std is set but has no effect"},
           {R"({"moe": {"use_moe": true}, "router": {"top_k": 1, "norm_topk_prob": true}})",
            "router.norm_topk_prob is skipped for router.top_k = 1"},
           {R"({"moe": {"use_moe": true}, "router": {"balance_loss": "none", "balance_coef": 1}})",
            "router.balance_coef is set but has no effect"},
           {R"({"moe": {"use_moe": true}, "router": {"balance_loss": "cv_squared", "balance_topk_normalize": true}})",
            "router.balance_topk_normalize is set but has no effect"},
           {R"({"optim": {"matrix_lr": 1}})", "optim.matrix_lr is set but has no effect"},
           {R"({"optim": {"muon": {"beta2": 0.9}}})",
            "optim.muon.beta2 is set but has no effect without optim.muon.variance_reduction"},
           {R"({"optim": {"matrix_optimizer": "adamw", "router_optimizer": "adamw", "muon": {"lr": 1}}})",
            "optim.muon.lr is set but has no effect"},
           {R"({"optim": {"schedule": {"shape": "constant", "final_fraction": 0.1}}})",
            "optim.schedule.final_fraction is set but has no effect"},
           {R"({"optim": {"schedule": {"warmup_steps": 60}}, "train": {"steps": 100}})",
            "warmup_steps = 60 and warmdown_fraction = 0.5 of train.steps = 100 overlap"},
           {R"({"precision": {"fp8_gradient": "e4m3"}})",
            "precision.fp8_gradient is set but has no effect without precision.mode = fp8"},
           {R"({"device": "cpu", "precision": {"mode": "bf16"}})", "precision.mode = bf16 on a CPU is far slower"},
           {R"({"train": {"steps": 10, "target_flops": 1e15}})", "train.steps = 10 decides"},
           {R"({"train": {"steps": 10, "target_param_data_ratio": 8}})",
            "train.target_param_data_ratio is set but has no effect"},
           {R"({"data": {"holdout_fraction": 0}, "train": {"eval_every": 5}})", "data.holdout_fraction = 0"},
       }) {
    const Outcome outcome = check(c.json);
    EXPECT_EQ(outcome.error, "") << c.json;
    ASSERT_EQ(outcome.messages.size(), 1u) << c.json << "\n" << join(outcome.messages, "\n");
    EXPECT_NE(outcome.messages[0].find(c.warning), std::string::npos) << outcome.messages[0];
  }
  const Outcome dry = check(R"({"device": "cpu", "precision": {"mode": "fp8"}})", 1, true);
  EXPECT_EQ(dry.error, "") << "a dry run reports for a target that is not this machine";
  EXPECT_EQ(dry.messages.size(), 1u);
}

TEST(ConfigRules, ACommandLineOverridesAFilesLengthWithoutAWarning) {
  struct Case {
    const char* json;
    Overrides overrides;
    const char* warning;  // "": none
  };
  for (const Case& c : std::vector<Case>{
           {R"({"train": {"target_param_data_ratio": 8}})", {{"train.steps", "10"}}, ""},
           {R"({"train": {"target_param_data_ratio": 8}})", {{"train.target_flops", "1e15"}}, ""},
           {R"({"train": {"target_flops": 1e15}})", {{"train.steps", "10"}}, ""},
           {R"({"train": {"steps": 10}})",
            {{"train.target_param_data_ratio", "8"}},
            "train.target_param_data_ratio is set but has no effect"},
           {"{}",
            {{"train.steps", "10"}, {"train.target_param_data_ratio", "8"}},
            "train.target_param_data_ratio is set but has no effect"},
           {R"({"train": {"steps": 10}})", {{"train.target_flops", "1e15"}}, "train.steps = 10 decides"},
           {"{}", {{"train.steps", "5"}, {"train.profile_step", "6"}}, "train.profile_step = 6 is after the last step"},
           {R"({"device": "cuda"})", {{"train.profile_step", "3"}}, "the first 3 steps record CUDA graphs"},
       }) {
    const std::vector<std::string> messages = check(c.json, 1, false, c.overrides).messages;
    EXPECT_EQ(messages.size(), *c.warning ? 1u : 0u) << c.json << "\n" << join(messages, "\n");
    const std::string first = messages.empty() ? "" : messages[0];
    EXPECT_NE(first.find(c.warning), std::string::npos) << c.json << "\n" << first;
  }
}

TEST(ConfigRules, WhatIsAllowed) {
  for (const char* json : {
           R"({"model": {"n_embd": 2048, "n_head": 32, "head_dim": 128}})",  // heads wider together than the stream
           R"({"model": {"n_embd": 256, "n_head": 8, "n_kv_head": 1}})",
           R"({"model": {"depth": 6, "n_layer": 6}})",
           R"({"moe": {"use_moe": true, "n_experts": 1}, "router": {"top_k": 1}})",
           R"({"moe": {"use_moe": true, "n_experts": 4}, "router": {"top_k": 4}})",
           R"({"moe": {"use_moe": true, "d_expert": 100}})",
           R"({"moe": {"use_moe": true}, "router": {"balance_loss": "cv_squared"}})",
           R"({"moe": {"use_moe": true}, "router": {"score": "sigmoid", "balance_loss": "cv_squared_topk"}})",
           R"({"data": {"corpus": "/tmp,/nowhere/*.txt"}})",
       }) {
    EXPECT_EQ(check(json).error, "") << json;
  }
}

TEST(ConfigDerive, FillsWhatFollows) {
  struct Case {
    const char* json;
    int n_layer, n_embd, n_head, n_kv_head, ffn_hidden, d_expert, d_shared;
  };
  for (const Case& c : std::vector<Case>{
           {"{}", 12, 768, 12, 12, 3072, 3072, 3072},
           {R"({"moe": {"expert_hidden_mult": 2}})", 12, 768, 12, 12, 3072, 1536, 1536},
           {R"({"moe": {"d_expert": 704, "d_shared": 100}})", 12, 768, 12, 12, 3072, 704, 100},
           {R"({"model": {"depth": 4}})", 4, 256, 4, 4, 1024, 1024, 1024},
           {R"({"model": {"depth": 5, "aspect_ratio": 50}})", 5, 256, 4, 4, 1024, 1024, 1024},
           {R"({"model": {"depth": 5, "n_embd": 128}})", 5, 128, 2, 2, 512, 512, 512},
           {R"({"model": {"n_embd": 512, "n_kv_head": 2, "ffn_hidden": 1400}})", 12, 512, 8, 2, 1400, 2048, 2048},
           {R"({"model": {"n_head": 0, "ffn_hidden": 0}, "moe": {"d_expert": 0}})", 12, 768, 12, 12, 3072, 3072, 3072},
       }) {
    ResolvedConfig r = parse_config(c.json, "a.json", {});
    for (int again = 0; again < 2; ++again, derive(r)) {
      EXPECT_EQ(r.config.model.n_layer, c.n_layer) << c.json;
      EXPECT_EQ(r.config.model.n_embd, c.n_embd) << c.json;
      EXPECT_EQ(r.config.model.n_head, c.n_head) << c.json;
      EXPECT_EQ(r.config.model.n_kv_head, c.n_kv_head) << c.json;
      EXPECT_EQ(r.config.model.ffn_hidden, c.ffn_hidden) << c.json;
      EXPECT_EQ(r.config.moe.d_expert, c.d_expert) << c.json;
      EXPECT_EQ(r.config.moe.d_shared, c.d_shared) << c.json;
    }
  }
}

TEST(ConfigDerive, AHandBuiltConfigIsFilledToo) {
  Config config;
  config.model.n_embd = 64, config.model.head_dim = 16, config.moe.expert_hidden_mult = 2;
  derive(config);
  EXPECT_EQ(config.model.n_head, 4);
  EXPECT_EQ(config.moe.d_expert, 128);
}

TEST(ConfigDerive, SegmentsCutExpertsAtUnchangedCost) {
  struct Case {
    const char* moe;
    int top_k, n_experts, d_expert, d_shared, resolved_top_k;
  };
  for (const Case& c : std::vector<Case>{
           {R"("segments": 4, "expert_hidden_mult": 2)", 2, 32, 384, 384, 8},
           {R"("segments": 4, "expert_hidden_mult": 2, "n_shared_experts": 1)", 2, 31, 384, 384, 7},
           {R"("segments": 2, "d_expert": 1000, "n_experts": 16, "n_shared_experts": 3, "d_shared": 70)", 4, 29, 500,
            70, 5},
           {R"("segments": 1, "d_expert": 1001)", 2, 8, 1001, 1001, 2},
           {R"("segments": 2, "n_experts": 1)", 0, 2, 1536, 1536, 2},  // top_k, not given, yields first
       }) {
    const std::string router = c.top_k ? R"(, "router": {"top_k": )" + std::to_string(c.top_k) + "}" : "";
    const std::string json = R"({"moe": {"use_moe": true, )" + std::string(c.moe) + "}" + router + "}";
    ResolvedConfig r = parse_config(json, "a.json", {});
    for (int again = 0; again < 3; ++again) {
      EXPECT_EQ(r.config.moe.n_experts, c.n_experts) << c.moe;
      EXPECT_EQ(r.config.moe.d_expert, c.d_expert) << c.moe;
      EXPECT_EQ(r.config.moe.d_shared, c.d_shared) << c.moe;
      EXPECT_EQ(r.config.router.top_k, c.resolved_top_k) << c.moe;
      if (again == 0) derive(r, 1);
      if (again == 1) r = parse_config(r.given_json(), "config.json", {});  // as a resumed run does
    }
  }
}

TEST(ConfigDerive, TheDeviceIsSettledOnceAndStays) {
  ResolvedConfig r = parse_config("{}", "a.json", {});
  settle_device(r, false);
  EXPECT_EQ(r.config.device, "cpu");
  EXPECT_EQ(r.config.precision.mode, "fp32");
  validate(r, 1);
  EXPECT_EQ(r.config.device, "cpu");
  EXPECT_EQ(r.config.precision.mode, "fp32");
  EXPECT_EQ(r.source("precision.mode"), Source::kDerived);
  ResolvedConfig gpu = parse_config("{}", "a.json", {});
  settle_device(gpu, true);
  EXPECT_EQ(gpu.config.device, "cuda");
  EXPECT_EQ(gpu.config.precision.mode, "bf16");
}

}  // namespace
}  // namespace switchyard
