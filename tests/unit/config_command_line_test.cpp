#include <gtest/gtest.h>

#include "base/error.h"
#include "config/command_line.h"

namespace switchyard {
namespace {

CommandLine parse(std::vector<const char*> words) {
  words.insert(words.begin(), "train");
  return parse_command_line(static_cast<int>(words.size()), words.data(), "train");
}

TEST(CommandLineTest, KeysInEveryForm) {
  struct Case {
    std::vector<const char*> words;
    Overrides overrides;
  };
  for (const Case& c : std::vector<Case>{
           {{"--moe.n_experts", "4"}, {{"moe.n_experts", "4"}}},
           {{"--moe.n_experts=4"}, {{"moe.n_experts", "4"}}},
           {{"--device", "cpu"}, {{"device", "cpu"}}},
           {{"--moe.use_moe"}, {{"moe.use_moe", "true"}}},
           {{"--moe.use_moe", "false"}, {{"moe.use_moe", "false"}}},
           {{"--moe.use_moe", "--device", "cpu"}, {{"moe.use_moe", "true"}, {"device", "cpu"}}},
           {{"--moe.use_moe", "maybe"}, {{"moe.use_moe", "maybe"}}},
           {{"--train.seed", "-1"}, {{"train.seed", "-1"}}},
           {{"--train.sample_prompt", "a = b"}, {{"train.sample_prompt", "a = b"}}},
           {{"--train.sample_prompt=--x=1"}, {{"train.sample_prompt", "--x=1"}}},
           {{"--train.out="}, {{"train.out", ""}}},
           {{"--router.top_k", "1", "--router.top_k", "2"}, {{"router.top_k", "1"}, {"router.top_k", "2"}}},
           {{"--resume"}, {{"train.resume", "true"}}},
           {{"--init_from", "x"}, {{"train.init_from", "x"}}},
       }) {
    EXPECT_EQ(parse(c.words).overrides, c.overrides) << c.words[0];
  }
}

TEST(CommandLineTest, FlagsBetweenKeys) {
  const CommandLine line =
      parse({"--moe.n_experts", "4", "--config", "quickstart.json", "--dry-run", "--router.top_k=1"});
  EXPECT_EQ(line.config, "quickstart.json");
  EXPECT_TRUE(line.dry_run);
  EXPECT_FALSE(line.help);
  EXPECT_EQ(line.overrides, (Overrides{{"moe.n_experts", "4"}, {"router.top_k", "1"}}));
  EXPECT_EQ(parse({"--explain", "router"}).explain, "router");
  EXPECT_TRUE(parse({"--help"}).help);
  EXPECT_TRUE(parse({"--schema"}).schema);
}

TEST(CommandLineTest, MistakesAreNamedWithTheirRemedy) {
  struct Case {
    std::vector<const char*> words;
    const char* says;
  };
  for (const Case& c : std::vector<Case>{
           {{"--moe.n_expert", "4"}, "unknown option --moe.n_expert; did you mean moe.n_experts?"},
           {{"--n_experts", "4"}, "unknown option --n_experts; did you mean moe.n_experts?"},
           {{"--num_experts=4"}, "unknown option --num_experts; did you mean moe.n_experts?"},
           {{"--confg", "x"}, "unknown option --confg; did you mean --config?"},
           {{"--dryrun"}, "unknown option --dryrun; did you mean --dry-run?"},
           {{"--zzzzzzzzzzzz"}, "unknown option --zzzzzzzzzzzz; --help lists all keys"},
           {{"quickstart.json"},
            "unexpected argument \"quickstart.json\"; a config is named by --config quickstart.json"},
           {{"--moe.n_experts"}, "--moe.n_experts lacks its value, integer"},
           {{"--config"}, "--config lacks its value, NAME"},
           {{"--explain", "--resume"}, "--explain lacks its value; next comes --resume"},
           {{"--init_from"}, "--init_from lacks its value, PATH"},
           {{"--precision", "fp32"}, "--precision is a group of keys"},
           {{"--precision", "fp32"}, "write --precision.mode VALUE, say; --explain precision lists them"},
           {{"--router=3"}, "--router is a group of keys"},
           {{"--optim.muon", "3"}, "write --optim.muon.lr VALUE"},
           {{"--use_null_expert", "true"}, "did you mean moe.overflow null_expert?"},
           {{"--batch_size", "8"}, "did you mean train.batch_tokens or train.micro_batch?"},
       }) {
    try {
      parse(c.words);
      ADD_FAILURE() << c.words[0] << " was accepted";
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(c.says), std::string::npos) << error.what();
    }
  }
}

TEST(CommandLineTest, AnAppWithoutAConfigTakesItsOwnOptionsAlone) {
  const std::vector<AppOption> own = {{"prompt", "TEXT", "def ", "text to continue"},
                                      {"greedy", "", "", "take the likeliest token"}};
  const auto parse_own = [&](std::vector<const char*> words) {
    words.insert(words.begin(), "sample");
    return parse_own_options(static_cast<int>(words.size()), words.data(), "sample", own, "keys are settled");
  };
  EXPECT_EQ(parse_own({}).own.at("prompt"), "def ");
  EXPECT_EQ(parse_own({"--prompt=import", "--greedy"}).own.at("greedy"), "true");
  EXPECT_TRUE(parse_own({"--help"}).help);
  struct Case {
    std::vector<const char*> words;
    const char* says;
  };
  for (const Case& c : std::vector<Case>{{{"--config", "x"}, "unknown option --config"},
                                         {{"--resume"}, "unknown option --resume"},
                                         {{"--dry-run"}, "unknown option --dry-run"},
                                         {{"--promt", "x"}, "unknown option --promt; did you mean --prompt?"},
                                         {{"--model.n_layer", "3"}, "--model.n_layer: keys are settled"},
                                         {{"text"}, "unexpected argument \"text\""},
                                         {{"--prompt"}, "--prompt lacks its value, TEXT"}}) {
    try {
      parse_own(c.words);
      ADD_FAILURE() << c.words[0] << " was accepted";
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(c.says), std::string::npos) << error.what();
    }
  }
  const std::string help = own_help_text("sample", "writes text", own);
  EXPECT_NE(help.find("--prompt TEXT"), std::string::npos);
  for (const char* other : {"--config", "--resume", "router."}) EXPECT_EQ(help.find(other), std::string::npos) << other;
}

}  // namespace
}  // namespace switchyard
