#include "precision/fp8_report.h"

#include <gtest/gtest.h>

#include "model/linear_layers.h"

namespace switchyard {
namespace {

Config moe_8x2() {
  Config config;
  config.moe.use_moe = true;
  config.moe.expert_hidden_mult = 2;
  return config;
}

TEST(Fp8Report, CountsOfD12) {
  struct Case {
    const char* name;
    std::vector<std::string> exclude;
    int converted, skipped;
  };
  for (const Case& c : {Case{"default", {"*experts*"}, 49, 210}, Case{"experts too", {}, 241, 18},
                        Case{"head out", {"*experts*", "head"}, 48, 211}, Case{"nothing", {"*"}, 0, 259}}) {
    Config config = moe_8x2();
    config.precision.fp8_exclude = c.exclude;
    const Fp8Report report = decide_fp8(linear_layers(config), config.precision);
    EXPECT_EQ(report.converted, c.converted) << c.name;
    EXPECT_EQ(report.skipped, c.skipped) << c.name;
    EXPECT_TRUE(report.warnings.empty()) << c.name;
  }
}

TEST(Fp8Report, EachLayerHasItsReason) {
  PrecisionConfig precision;
  precision.fp8_exclude = {"*experts*"};
  struct Case {
    const char* name;
    LinearLayer layer;
    const char* reason;
  };
  const Case cases[] = {
      {"converts", {"blocks.0.attn.out", 64, 64, 1, false}, ""},
      {"excluded", {"blocks.0.moe.experts.up", 64, 64, 8, false}, "fp8_exclude \"*experts*\""},
      {"router", {"blocks.0.moe.router", 64, 64, 1, true}, "router"},
      {"rows off", {"blocks.0.mlp.up", 60, 64, 1, false}, "60 is not a multiple"},
      {"columns off", {"blocks.0.mlp.up", 64, 40, 1, false}, "40 is not a multiple"},
  };
  for (const Case& c : cases) {
    const Fp8Report report = decide_fp8({c.layer}, precision);
    ASSERT_EQ(report.decisions.size(), 1u);
    EXPECT_EQ(report.decisions[0].converts, *c.reason == '\0') << c.name;
    EXPECT_NE(report.decisions[0].reason.find(c.reason), std::string::npos) << report.decisions[0].reason;
    EXPECT_EQ(report.converts(c.layer.name), *c.reason == '\0') << c.name;
  }
}

TEST(Fp8Report, PatternThatMatchesNothingWarns) {
  Config config = moe_8x2();
  config.precision.fp8_exclude = {"experts", "*attn*"};  // a pattern covers the whole name
  const Fp8Report report = decide_fp8(linear_layers(config), config.precision);
  ASSERT_EQ(report.warnings.size(), 1u);
  EXPECT_NE(report.warnings[0].find("\"experts\""), std::string::npos);
}

TEST(Fp8Report, TableGroupsLayersOfARole) {
  const Config config = moe_8x2();
  const Fp8Report report = decide_fp8(linear_layers(config), config.precision);
  const std::string table = fp8_table(report);
  EXPECT_NE(table.find("fp8: 49 converted, 210 skipped"), std::string::npos);
  EXPECT_NE(table.find("blocks.*.attn.qkv"), std::string::npos);
  EXPECT_EQ(table.find("blocks.3."), std::string::npos);
  EXPECT_NE(fp8_table(report, true).find("blocks.3.moe.experts.up"), std::string::npos);
}

}  // namespace
}  // namespace switchyard
