// Every preset of configs/ makes the parameters and FLOPs it was drawn up for. Counts were
// made apart from the program, by the formulas of moe_spec section 5 where that does not give them.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "base/text.h"
#include "config/derive.h"
#include "config/load.h"
#include "model/accounting.h"

namespace switchyard {
namespace {

struct Size {
  std::int64_t total, active, flops_per_token;
};

const std::map<std::string, Size>& sizes() {
  static const std::map<std::string, Size> table = {// section 5.1, and relatives
                                                    {"moe_8x2", {456206616, 286337304, 774305280}},
                                                    {"dense_d12", {286263576, 286263576, 773862912}},
                                                    {"moe_8x2_mult4", {682699032, 342960408, 1114043904}},
                                                    {"moe_8x2_shared", {484518168, 314648856, 944174592}},
                                                    {"moe_32x4", {682920216, 286558488, 775632384}},
                                                    {"moe_64x8", {683215128, 286853400, 777401856}},
                                                    {"deepseek_style", {656623896, 293292312, 816035328}},
                                                    {"d20_8x2", {1683172520, 896740520, 3241347840}},
                                                    // 5.2, and relatives
                                                    {"small_4x1", {501793792, 199803904, 1203437568}},
                                                    {"medium_8x2", {1924846592, 565892096, 3651502080}},
                                                    {"large_16x2", {7906472448, 1168323072, 7356432384}},
                                                    {"mixtral_8x2", {46702792704, 12879925248, 82933972992}},
                                                    {"olmoe_64x8", {6919100416, 1281955840, 8683782144}},
                                                    {"llama_moe_small", {91267584, 39363072, 236126208}},
                                                    // 5.3
                                                    {"moe_transformer", {8352270368, 3520432160, 21534081024}},
                                                    {"moe_transformer_literal", {8352270368, 3520432160, 21131427840}},
                                                    // 5.4, and others for CPUs
                                                    {"quickstart", {3410184, 2885896, 9451008}},
                                                    {"tiny_000", {393860, 262788, 1281792}},
                                                    {"tiny_001", {1837320, 1050888, 5518848}},
                                                    {"tiny_002", {427140, 230532, 1088256}},
                                                    {"tiny_003", {468362, 271754, 1334016}},
                                                    {"tiny_004", {259200, 148608, 912384}},
                                                    {"tiny_dense", {196740, 196740, 885504}},
                                                    {"tiny_llama_moe", {275264, 201536, 1108992}},
                                                    {"tiny_moe", {262788, 197252, 888576}}};
  return table;
}

ResolvedConfig preset(const std::string& name, const Overrides& overrides = {}) {
  ResolvedConfig resolved = load_config(name, overrides, SWITCHYARD_SOURCE_DIR);
  settle_device(resolved, /*cuda_present=*/true);
  return resolved;
}

TEST(Presets, AreTheSizeTheyAreDrawnUpFor) {
  for (const auto& [name, size] : sizes()) {
    const Accounting a = account(preset(name).config);
    EXPECT_EQ(a.total, size.total) << name;
    EXPECT_EQ(a.active, size.active) << name;
    EXPECT_EQ(a.flops_per_token, size.flops_per_token) << name;
  }
}

TEST(Presets, HaveEachASizeHere) {
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SWITCHYARD_SOURCE_DIR "/configs")) {
    const std::string name = entry.path().stem().string();
    if (entry.path().extension() != ".json" || name == "schema") continue;
    ++files;
    EXPECT_EQ(sizes().count(name), 1u) << name << " has no size above";
  }
  EXPECT_EQ(files, sizes().size());
}

TEST(Presets, OfOneFamilyDifferInWhatTheyAreNamedFor) {
  const Accounting literal = account(preset("moe_transformer").config);
  EXPECT_EQ(literal.part(PartKind::kRouter).total, 262144);
  EXPECT_EQ(literal.part(PartKind::kExperts).total, 6442450944);
  EXPECT_EQ(literal.part(PartKind::kSharedExperts).total, 805306368);
  EXPECT_EQ(literal.part(PartKind::kDenseMlp).total, 805306368);
  EXPECT_EQ(literal.part(PartKind::kScalars).total, 16 * 2049 + 16);
  EXPECT_EQ(literal.part(PartKind::kNorms).total, 67584);

  const Accounting ffn = account(preset("moe_transformer", {{"moe.null_expert", "ffn"}}).config);
  EXPECT_EQ(ffn.total, 9157576736);
  EXPECT_EQ(ffn.active, 4325738528);
  const Accounting dense = account(preset("moe_transformer", {{"moe.use_moe", "false"}}).config);
  EXPECT_EQ(dense.total, 1104218112);
  EXPECT_EQ(dense.active, dense.total);
  EXPECT_EQ(account(preset("moe_8x2", {{"model.value_gate_channels", "12"}}).config).flops_per_token, 774296640);
}

TEST(Presets, TheDryRunsTableHasTheNumbers) {
  const std::string table = parameter_table(account(preset("moe_transformer").config));
  for (const char* text : {"8,352,270,368", "3,520,432,160", "21,534,081,024", "32,800"})
    EXPECT_NE(table.find(text), std::string::npos) << text << " in\n" << table;
}

}  // namespace
}  // namespace switchyard
