#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/philox.h"
#include "base/text.h"

namespace switchyard {
namespace {

TEST(Text, NumbersReadAsPeopleWriteThem) {
  EXPECT_EQ(with_commas(456206616), "456,206,616");
  EXPECT_EQ(with_commas(-1234), "-1,234");
  EXPECT_EQ(with_commas(999), "999");
  EXPECT_EQ(in_millions(456206616), "456M");
  EXPECT_EQ(human_duration(3725), "1h 02m");
}

TEST(Text, Globs) {
  struct Case {
    const char* pattern;
    const char* text;
    bool matches;
  };
  for (const Case& c :
       {Case{"*experts*", "blocks.0.moe.experts.w1", true}, Case{"*experts*", "blocks.0.mlp.w1", false},
        Case{"blocks.?.attn", "blocks.3.attn", true}, Case{"blocks.?.attn", "blocks.12.attn", false},
        Case{"", "", true}, Case{"*", "", true}, Case{"a*b*c", "axxbyyc", true}, Case{"a*b*c", "axxbyy", false}}) {
    EXPECT_EQ(matches_glob(c.pattern, c.text), c.matches) << c.pattern << " on " << c.text;
  }
}

TEST(Text, NearestNamesTheLikelyWordAndNothingFarAway) {
  EXPECT_EQ(nearest("n_expert", {"n_experts", "n_embd", "top_k"}), "n_experts");
  EXPECT_EQ(nearest("zzzzzzzz", {"n_experts", "n_embd", "top_k"}), "");
}

// The known answers published with the generator (Random123 kat_vectors, philox4x32 10 rounds).
TEST(Philox, MatchesPublishedVectors) {
  const Words4 zero = philox(0, 0, 0);
  EXPECT_EQ(zero.x, 0x6627e8d5u);
  EXPECT_EQ(zero.y, 0xe169c58du);
  EXPECT_EQ(zero.z, 0xbc57ac4cu);
  EXPECT_EQ(zero.w, 0x9b00dbd8u);
  const Words4 ones = philox(~0ull, ~0ull, ~0ull);
  EXPECT_EQ(ones.x, 0x408f276du);
  EXPECT_EQ(ones.y, 0x41c83b0eu);
  EXPECT_EQ(ones.z, 0xa20bc7c6u);
  EXPECT_EQ(ones.w, 0x6d5451fdu);
}

TEST(Files, AtomicWriteReplacesAndMapsBack) {
  const std::string path = (std::filesystem::temp_directory_path() / "switchyard_files_test").string();
  write_file_atomic(path, "old");
  write_file_atomic(path, "new contents");
  EXPECT_EQ(read_file(path), "new contents");
  const MappedFile mapped(path);
  EXPECT_EQ(std::string(mapped.data(), mapped.size()), "new contents");
  std::filesystem::remove(path);
  EXPECT_THROW(read_file(path), RunError);
}

}  // namespace
}  // namespace switchyard
