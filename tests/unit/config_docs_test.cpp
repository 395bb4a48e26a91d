// What is written from the list of options, and the config files of the tree.
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "config/command_line.h"
#include "config/explain.h"
#include "config/field.h"
#include "config/hints.h"
#include "config/load.h"
#include "config/validate.h"

namespace switchyard {
namespace {

const std::string kSource = SWITCHYARD_SOURCE_DIR;

TEST(ConfigDocs, CommittedFilesAreThoseOfTheOptions) {
  EXPECT_TRUE(read_file(kSource + "/configs/schema.json") == json_schema())
      << "regenerate: ./train --schema > configs/schema.json";
  EXPECT_TRUE(read_file(kSource + "/docs/options.md") == option_table_markdown())
      << "regenerate: ./train --options > docs/options.md";
}

TEST(ConfigDocs, EveryFieldIsDescribedOnce) {
  std::set<std::string> keys;
  for (const Field& field : default_fields()) {
    EXPECT_TRUE(keys.insert(field.key).second) << field.key << " is declared twice";
    EXPECT_GE(field.help.size(), 10u) << field.key;
    EXPECT_EQ(field.help.back(), '.') << field.key << ": help texts are sentences";
  }
  EXPECT_GT(keys.size(), 100u);
}

TEST(ConfigDocs, EveryDefaultIsAllowed) {
  for (const Field& field : default_fields()) {
    ResolvedConfig resolved;
    EXPECT_NO_THROW(resolved.set(field.key, field.text())) << field.key;
  }
  ResolvedConfig defaults = parse_config("{}", "", {});
  EXPECT_TRUE(validate(defaults, 1).empty());
}

TEST(ConfigDocs, ExplainTellsAllOfAKeyAndListsAGroup) {
  const std::string key = explain("router.score");
  for (const char* part : {"router.score", "softmax over all experts", "string", "\"softmax\"",
                           "one of softmax, sigmoid, identity", "R2", "DeepSeek-V3"})
    EXPECT_NE(key.find(part), std::string::npos) << part << " in\n" << key;
  EXPECT_EQ(explain("score"), key) << "a unique last part is enough";
  const std::string group = explain("router");
  for (const char* part : {"router.top_k", "router.balance_loss", "router.z_loss_coef"})
    EXPECT_NE(group.find(part), std::string::npos) << part;
  EXPECT_NE(explain("optim").find("optim.muon.lr"), std::string::npos);
  try {
    explain("ruoter.top_k");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean router.top_k?"), std::string::npos) << error.what();
  }
}

TEST(ConfigDocs, HelpIsShortAndHasEveryGroup) {
  const std::string help = help_text("train", "trains a GPT");
  for (const Group& group : config_groups())
    EXPECT_NE(help.find("  " + group.name + ".  "), std::string::npos) << group.name;
  EXPECT_LE(std::count(help.begin(), help.end(), '\n'), 70);
}

TEST(ConfigDocs, AliasesAreNotKeysAndNameOneGroupedKey) {
  for (const auto& [alias, key] : key_aliases()) {
    EXPECT_EQ(find_field(key.substr(0, key.find('.') + 1) + alias), nullptr) << alias;
    EXPECT_NE(key.find('.'), std::string::npos) << alias;
    EXPECT_NE(key_hint(alias).find(key), std::string::npos) << alias;
  }
}

TEST(ConfigPresets, EveryFileLoadsIsValidAndSaysWhatItIsFor) {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kSource + "/configs")) {
    if (entry.path().extension() != ".json" || entry.path().stem() == "schema") continue;
    ResolvedConfig resolved = load_config(entry.path().string(), {}, kSource);
    for (const std::string& message : validate(resolved, 1))  // what DeepSeek-V3 does too is told, not warned of
      EXPECT_NE(message.find("as in DeepSeek-V3"), std::string::npos) << entry.path() << ": " << message;
    EXPECT_GE(resolved.config.comment.size(), 60u) << entry.path();
    for (const int ranks : {2, 4, 8}) {
      ResolvedConfig several = load_config(entry.path().string(), {{"train.micro_batch", "1"}}, kSource);
      EXPECT_NO_THROW(validate(several, ranks)) << entry.path() << " on " << ranks << " ranks";
    }
    ++found;
  }
  EXPECT_GE(found, 12);
}

TEST(ConfigPresets, TwinsHaveEqualFlopsAndTheNumbersOfTheirComments) {
  const Config sparse = load_config("moe_8x2", {}, kSource).config,
               dense = load_config("dense_d12", {}, kSource).config;
  const Config fine = load_config("moe_32x4", {}, kSource).config, finest = load_config("moe_64x8", {}, kSource).config;
  EXPECT_EQ(sparse.router.top_k * sparse.moe.d_expert, dense.model.ffn_hidden);
  EXPECT_EQ(fine.router.top_k * fine.moe.d_expert, dense.model.ffn_hidden);
  EXPECT_EQ(finest.router.top_k * finest.moe.d_expert, dense.model.ffn_hidden);
  EXPECT_EQ(dense.model.n_embd, sparse.model.n_embd);
  EXPECT_EQ(load_config("tiny_dense", {}, kSource).config.model.n_embd,
            load_config("tiny_moe", {}, kSource).config.model.n_embd);
}

}  // namespace
}  // namespace switchyard
