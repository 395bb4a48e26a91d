// Reading: every way a file or an override can be wrong, and what a good one becomes.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "config/load.h"

namespace switchyard {
namespace {

std::string error_of(const std::string& json, const Overrides& overrides = {}) {
  try {
    parse_config(json, "a.json", overrides);
  } catch (const ConfigError& error) { return error.what(); }
  return "no error";
}

TEST(ConfigFile, EveryMistakeIsNamedWithItsRemedy) {
  struct Case {
    const char* name;
    const char* json;
    std::vector<const char*> says;
  };
  for (const Case& c : std::vector<Case>{
           {"comma missing",
            "{\n  \"device\": \"cpu\"\n  \"name\": 1\n}",
            {"a.json:3:8: malformed JSON", "syntax error"}},
           {"cut off", "{\"moe\": {", {"a.json:1:", "malformed JSON"}},
           {"empty file", "", {"a.json:1:1: malformed JSON"}},
           {"not an object", "[1, 2]", {"a.json: a config is a JSON object", "array"}},
           {"duplicate key", R"({"model": {"n_layer": 2, "n_layer": 3}})", {"\"n_layer\" stands twice"}},
           {"nested and dotted", R"({"model": {"n_layer": 2}, "model.n_layer": 3})", {"model.n_layer is given twice"}},
           {"misspelt key",
            R"({"moe": {"n_expert": 4}})",
            {"a.json: unknown key moe.n_expert; did you mean moe.n_experts?"}},
           {"misspelt group", R"({"modle": {"n_layer": 4}})", {"unknown key modle; did you mean model?"}},
           {"nested misspelt",
            R"({"optim": {"muon": {"momentun_end": 0.9}}})",
            {"optim.muon.momentun_end", "optim.muon.momentum_end?"}},
           {"nothing near", R"({"zzzzzzzzzz": 4})", {"unknown key zzzzzzzzzz; --help lists all keys"}},
           {"another program's name",
            R"({"moe": {"num_experts": 8}})",
            {"unknown key moe.num_experts; did you mean moe.n_experts?"}},
           {"without its group", R"({"top_k": 2})", {"unknown key top_k; did you mean router.top_k?"}},
           {"in the wrong group", R"({"moe": {"top_k": 2}})", {"unknown key moe.top_k; did you mean router.top_k?"}},
           {"dash for underscore", R"({"train": {"batch-tokens": 2}})", {"did you mean train.batch_tokens?"}},
           {"not built yet",
            R"({"expert_parallel": 1})",
            {"that would be parallel.expert, which this version does not have"}},
           {"group as value", R"({"moe": 8})", {"moe = 8 is a group of keys; write \"moe\": { ... }"}},
           {"string for integer",
            R"({"router": {"top_k": "two"}})",
            {"router.top_k = \"two\" (in a.json) is a JSON string; give an integer, 1 to 65536 (default 2)"}},
           {"fraction for integer", R"({"router": {"top_k": 1.5}})", {"router.top_k = 1.5", "is not a whole number"}},
           {"boolean for integer",
            R"({"model": {"n_layer": true}})",
            {"model.n_layer = true", "is a JSON boolean; give an integer"}},
           {"null", R"({"model": {"n_layer": null}})", {"model.n_layer = null", "is null"}},
           {"beyond int",
            R"({"model": {"vocab_size": 99999999999}})",
            {"model.vocab_size = 99999999999", "is out of range"}},
           {"beyond 64 bits", R"({"train": {"seed": 18446744073709551615}})", {"train.seed", "is not a whole number"}},
           {"below range",
            R"({"router": {"top_k": 0}})",
            {"router.top_k = 0", "is out of range; give an integer, 1 to 65536"}},
           {"open end", R"({"model": {"dropout": 1}})", {"model.dropout = 1", "at least 0, less than 1"}},
           {"open start", R"({"model": {"norm_eps": 0}})", {"model.norm_eps = 0", "more than 0"}},
           {"string for number",
            R"({"optim": {"muon": {"lr": "fast"}}})",
            {"optim.muon.lr = \"fast\"", "give a number, at least 0 (default 0.02)"}},
           {"integer for boolean",
            R"({"moe": {"use_moe": 1}})",
            {"moe.use_moe = 1", "is a JSON number; give true or false (default false)"}},
           {"number for string", R"({"name": 5})", {"name = 5", "is a JSON number; give a string"}},
           {"no such choice",
            R"({"router": {"score": "softmaxx"}})",
            {"router.score = \"softmaxx\"", "did you mean softmax?",
             "give one of softmax, sigmoid, identity (default softmax)"}},
           {"empty choice", R"({"router": {"score": ""}})", {"router.score = \"\"", "give one of"}},
           {"empty string", R"({"data": {"corpus": ""}})", {"data.corpus = \"\"", "is empty"}},
           {"window letters",
            R"({"model": {"window_pattern": "SXL"}})",
            {"model.window_pattern = \"SXL\"", "has other letters", "S and L"}},
           {"string for list",
            R"({"precision": {"fp8_exclude": "*experts*"}})",
            {"precision.fp8_exclude", "is a JSON string; give a list of strings"}},
           {"number in list", R"({"precision": {"fp8_exclude": ["a", 1]}})", {"precision.fp8_exclude", "not a string"}},
           {"object for value", R"({"device": {"kind": "cpu"}})", {"device = {\"kind\":\"cpu\"}", "is a JSON object"}},
           {"comment of numbers", R"({"comment": ["a", 1]})", {"comment = [\"a\",1]", "is a JSON array"}},
       }) {
    const std::string error = error_of(c.json);
    for (const char* part : c.says)
      EXPECT_NE(error.find(part), std::string::npos) << c.name << ": " << error << "\nlacks: " << part;
    EXPECT_EQ(error.find('\n'), std::string::npos) << c.name << ": one line, not several";
  }
}

TEST(ConfigOverride, EveryMistakeIsNamedWithItsRemedy) {
  struct Case {
    const char* key;
    const char* text;
    std::vector<const char*> says;
  };
  for (const Case& c : std::vector<Case>{
           {"router.topk", "2", {"unknown option --router.topk; did you mean router.top_k?"}},
           {"hidden_size", "64", {"unknown option --hidden_size; did you mean model.n_embd?"}},
           {"router.top_k",
            "two",
            {"router.top_k = two (on the command line) is not an integer; give an integer, 1 to 65536"}},
           {"router.top_k", "", {"router.top_k = \"\"", "is not an integer"}},
           {"router.top_k", "2x", {"router.top_k = 2x", "is not an integer"}},
           {"router.top_k", "1.5", {"router.top_k = 1.5", "is not a whole number"}},
           {"router.top_k", "-1", {"router.top_k = -1", "is out of range"}},
           {"model.vocab_size", "5000000000", {"model.vocab_size = 5000000000", "is out of range"}},
           {"train.seed", "99999999999999999999", {"train.seed", "is out of range"}},
           {"moe.use_moe", "yes", {"moe.use_moe = yes", "is neither true nor false"}},
           {"optim.muon.lr", "fast", {"optim.muon.lr = fast", "is not a number"}},
           {"optim.muon.lr", "nan", {"optim.muon.lr = nan", "is not a finite number"}},
           {"optim.muon.lr", "inf", {"optim.muon.lr = inf", "is not a finite number"}},
           {"device", "gpu", {"device = \"gpu\"", "give one of auto, cpu, cuda"}},
           {"precision.fp8_exclude", "[1", {"precision.fp8_exclude = [1", "is not a JSON list"}},
       }) {
    const std::string error = error_of("{}", {{c.key, c.text}});
    for (const char* part : c.says)
      EXPECT_NE(error.find(part), std::string::npos) << c.key << ": " << error << "\nlacks: " << part;
  }
}

TEST(ConfigFile, ReadsNestedDottedAndLenientValues) {
  const ResolvedConfig r = parse_config(R"({
    "$schema": "schema.json", "comment": ["two", "lines"], "device": "cpu",
    "moe": {"use_moe": true}, "router.top_k": 1, "optim": {"muon.lr": 1, "schedule": {"shape": "cosine"}},
    "optim.adamw": {"eps": 1e-8}, "train": {"batch_tokens": 1e6, "cuda_graph": false}, "precision": {"fp8_exclude": []}
  })",
                                        "folder/some_run.json", {});
  EXPECT_EQ(r.config.comment, "two\nlines");
  EXPECT_TRUE(r.config.moe.use_moe);
  EXPECT_EQ(r.config.router.top_k, 1);
  EXPECT_EQ(r.config.optim.muon.lr, 1.0);
  EXPECT_EQ(r.config.optim.schedule.shape, "cosine");
  EXPECT_EQ(r.config.optim.adamw.eps, 1e-8);
  EXPECT_EQ(r.config.train.batch_tokens, 1000000);
  EXPECT_EQ(r.config.train.cuda_graph, "false");
  EXPECT_TRUE(r.config.precision.fp8_exclude.empty());
  EXPECT_EQ(r.config.name, "some_run");
  EXPECT_EQ(r.config.train.out, "runs/out/some_run");
}

TEST(ConfigOverride, ReadsEveryType) {
  const ResolvedConfig r = parse_config("{}", "",
                                        {{"moe.use_moe", "1"},
                                         {"train.batch_tokens", "1e6"},
                                         {"train.seed", "9007199254740993"},
                                         {"optim.muon.lr", "2e-2"},
                                         {"device", "cpu"},
                                         {"precision.fp8_exclude", "a*,b"},
                                         {"train.sample_prompt", ""},
                                         {"router.top_k", "3"},
                                         {"router.top_k", "4"}});
  EXPECT_TRUE(r.config.moe.use_moe);
  EXPECT_EQ(r.config.train.batch_tokens, 1000000);
  EXPECT_EQ(r.config.train.seed, 9007199254740993);  // beyond what a double holds
  EXPECT_EQ(r.config.optim.muon.lr, 0.02);
  EXPECT_EQ(r.config.precision.fp8_exclude, (std::vector<std::string>{"a*", "b"}));
  EXPECT_EQ(r.config.train.sample_prompt, "");
  EXPECT_EQ(r.config.router.top_k, 4) << "the last of equal keys wins";
  EXPECT_EQ(r.config.name, "run");
  EXPECT_EQ(parse_config("{}", "", {{"precision.fp8_exclude", "[\"x\"]"}}).config.precision.fp8_exclude,
            std::vector<std::string>{"x"});
}

TEST(ConfigSource, EachKeyKnowsWhereItsValueCameFrom) {
  const ResolvedConfig r =
      parse_config(R"({"router": {"top_k": 2}, "moe": {"n_experts": 4}})", "a.json", {{"moe.n_experts", "16"}});
  EXPECT_EQ(r.source("router.top_k"), Source::kFile) << "set to its default is still set";
  EXPECT_EQ(r.source("moe.n_experts"), Source::kCommandLine);
  EXPECT_EQ(r.source("model.n_head"), Source::kDerived);
  EXPECT_EQ(r.source("model.n_embd"), Source::kDefault);
  EXPECT_EQ(r.config.moe.n_experts, 16);
  EXPECT_TRUE(r.was_set("router.top_k"));
  EXPECT_FALSE(r.was_set("model.n_head"));
  EXPECT_NE(r.table().find("router.top_k"), std::string::npos);
  EXPECT_EQ(r.given_keys(), (std::vector<std::string>{"moe.n_experts", "router.top_k"}));
}

TEST(ConfigSource, GivenKeysSurviveACheckpointAndNothingElseDoes) {
  const ResolvedConfig first =
      parse_config(R"({"model": {"n_embd": 128, "head_dim": 32}, "optim": {"muon": {"lr": 0.1}}})", "x.json",
                   {{"precision.fp8_exclude", "a,b"}});
  const ResolvedConfig again = parse_config(first.given_json(), "config.json", {});
  EXPECT_EQ(again.resolved_json(), first.resolved_json());
  EXPECT_EQ(again.config.name, "x");
  EXPECT_FALSE(again.was_set("model.n_head"));
  EXPECT_EQ(agreed_lines(again), agreed_lines(first));
  // A wider model on resume derives its heads anew, because the heads were never given.
  EXPECT_EQ(parse_config(first.given_json(), "config.json", {{"model.n_embd", "256"}}).config.model.n_head, 8);
  // The resolved form is a valid config too, with every key given but those that exclude each other.
  EXPECT_EQ(parse_config(first.resolved_json(), "config.json", {}).resolved_json(), first.resolved_json());
}

TEST(AgreedLines, HoldWhatRanksMustShare) {
  const ResolvedConfig one = parse_config("{}", "a.json", {});
  const ResolvedConfig elsewhere =
      parse_config(R"({"comment": "x"})", "a.json", {{"train.out", "/tmp/x"}, {"log.routing", "layer"}});
  const ResolvedConfig other = parse_config("{}", "a.json", {{"optim.muon.lr", "0.5"}});
  EXPECT_EQ(agreed_lines(one), agreed_lines(elsewhere));
  EXPECT_NE(agreed_lines(one), agreed_lines(other));
  EXPECT_NE(agreed_lines(other).find("optim.muon.lr = 0.5\n"), std::string::npos);
}

TEST(ConfigSource, HowARunStartedIsNotPartOfWhatItIs) {
  const ResolvedConfig r = parse_config("{}", "a.json", {{"train.init_from", "x"}, {"train.steps", "5"}});
  EXPECT_EQ(r.given_json().find("init_from"), std::string::npos);
  EXPECT_NE(r.given_json().find("steps"), std::string::npos);
}

class FindConfig : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* test = ::testing::UnitTest::GetInstance()->current_test_info()->name();  // others run at the same time
    base_ = std::filesystem::temp_directory_path() / (std::string("switchyard_find_config_") + test);
    std::filesystem::remove_all(base_);
    std::filesystem::create_directories(base_ / "work/configs");
    std::filesystem::create_directories(base_ / "source/configs");
    before_ = std::filesystem::current_path();
    std::filesystem::current_path(base_ / "work");
  }
  void TearDown() override {
    std::filesystem::current_path(before_);
    std::filesystem::remove_all(base_);
  }
  void write(const std::string& path) { std::ofstream(base_ / path) << "{}"; }
  std::string root() const { return (base_ / "source").string(); }
  std::filesystem::path base_, before_;
};

TEST_F(FindConfig, LooksAtThePathThenBothConfigFolders) {
  write("source/configs/run.json");
  EXPECT_EQ(find_config("run", root()), root() + "/configs/run.json");
  EXPECT_EQ(find_config("run.json", root()), root() + "/configs/run.json");
  write("work/configs/run.json");
  EXPECT_EQ(find_config("run", root()), "configs/run.json");
  write("work/run.json");
  EXPECT_EQ(find_config("run", root()), "run.json");
  EXPECT_EQ(find_config((base_ / "work/run.json").string(), root()), (base_ / "work/run.json").string());
}

TEST_F(FindConfig, AMissingFileIsNamedWithThePlacesAndTheNearest) {
  write("source/configs/quickstart.json");
  try {
    load_config("quikstart", {}, root());
    FAIL() << "found a file that is not there";
  } catch (const ConfigError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("--config quikstart: no such file"), std::string::npos) << message;
    EXPECT_NE(message.find("configs/quikstart.json"), std::string::npos) << message;
    EXPECT_NE(message.find("did you mean quickstart?"), std::string::npos) << message;
  }
  std::filesystem::create_directory("folder");
  EXPECT_THROW(load_config("folder", {}, root()), ConfigError);
}

}  // namespace
}  // namespace switchyard
