#include "train/safetensors.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace switchyard {
namespace {

class Safetensors : public ::testing::Test {
 protected:
  Safetensors()
      : path_(::testing::TempDir() + "switchyard_" + ::testing::UnitTest::GetInstance()->current_test_info()->name() +
              ".safetensors") {}
  ~Safetensors() override { std::filesystem::remove(path_); }

  // What reading the file as it stands throws, or "" when it is fine.
  std::string error_of(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary) << bytes;
    try {
      SafetensorsFile file(path_);
      return "";
    } catch (const RunError& error) { return error.what(); }
  }

  std::string path_;
};

const std::vector<at::ScalarType> kTypes = {at::kFloat,         at::kDouble,     at::kBFloat16, at::kHalf,
                                            at::kLong,          at::kInt,        at::kByte,     at::kBool,
                                            at::kFloat8_e4m3fn, at::kFloat8_e5m2};

TEST_F(Safetensors, EveryTypeAndShapeComesBackBitForBit) {
  const std::vector<std::vector<std::int64_t>> shapes = {{}, {0}, {1}, {7}, {3, 5}, {2, 3, 4}};
  NamedTensors written;
  for (const at::ScalarType type : kTypes) {
    for (const auto& shape : shapes) {
      const at::Tensor values = (at::rand(shape, at::kFloat) * 100).to(type);
      written.emplace_back(std::string(at::toString(type)) + "." + std::to_string(written.size()), values);
    }
  }
  written.emplace_back("strided", at::rand({6, 4}).t());
  const FileSummary summary = write_safetensors(path_, written, {{"format", "pt"}, {"note", "a \"quoted\" word"}});
  EXPECT_EQ(summary.bytes, std::filesystem::file_size(path_));
  EXPECT_EQ(summary.checksum, summarise_file(path_).checksum);

  const SafetensorsFile file(path_);
  EXPECT_EQ(file.metadata().at("note"), "a \"quoted\" word");
  EXPECT_EQ(file.names().size(), written.size());
  for (const auto& [name, tensor] : written) {
    const at::Tensor read = file.tensor(name);
    EXPECT_EQ(read.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(read.sizes(), tensor.sizes()) << name;
    EXPECT_TRUE(read.reshape(-1).view(at::kByte).equal(tensor.contiguous().reshape(-1).view(at::kByte))) << name;
  }
}

TEST_F(Safetensors, MissingAndMismatchedTensorsAreNamed) {
  write_safetensors(path_, {{"blocks.0.attn.qkv", at::ones({2, 3})}});
  const SafetensorsFile file(path_);
  EXPECT_TRUE(file.has("blocks.0.attn.qkv"));
  const auto message = [&](const std::string& name, at::Tensor target) -> std::string {
    try {
      file.copy_into(name, target);
      return "";
    } catch (const RunError& error) { return error.what(); }
  };
  at::Tensor fits = at::zeros({3, 2}).t();  // not contiguous
  EXPECT_EQ(message("blocks.0.attn.qkv", fits), "");
  EXPECT_TRUE(fits.equal(at::ones({2, 3})));
  EXPECT_NE(message("blocks.0.attn.qkw", fits).find("nearest is blocks.0.attn.qkv"), std::string::npos);
  EXPECT_NE(message("blocks.0.attn.qkv", at::zeros({3, 3})).find("F32 [2, 3], F32 [3, 3] is needed"),
            std::string::npos);
  EXPECT_NE(message("blocks.0.attn.qkv", at::zeros({2, 3}, at::kLong)).find("I64 [2, 3] is needed"), std::string::npos);
}

TEST_F(Safetensors, BrokenFilesSayWhatIsWrong) {
  const auto file = [](const std::string& json, std::size_t data) {
    std::string bytes(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(json.size() >> (8 * i) & 0xff);
    return bytes + json + std::string(data, 'x');
  };
  const auto one = [](const char* dtype, const char* shape, const char* offsets) {
    return std::string("{\"a\":{\"dtype\":\"") + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets +
           "}}";
  };
  struct Case {
    const char* name;
    std::string bytes;
    const char* message;
  };
  const Case cases[] = {
      {"whole", file(one("F32", "[2]", "[0,8]"), 8), ""},
      {"empty", "", "truncated"},
      {"no header", file("", 0).substr(0, 5), "truncated"},
      {"text", "this is not a checkpoint at all", "not a safetensors file"},
      {"header cut", file(one("F32", "[2]", "[0,8]"), 0).substr(0, 30), "truncated"},
      {"data cut", file(one("F32", "[2]", "[0,8]"), 7), "truncated: tensor a ends at byte 8"},
      {"data too long", file(one("F32", "[2]", "[0,8]"), 9), "holds 9 bytes"},
      {"not JSON", file("{\"a\":", 0), "not JSON"},
      {"unknown dtype", file(one("F31", "[2]", "[0,8]"), 8), "unknown dtype F31"},
      {"shape and bytes differ", file(one("F32", "[3]", "[0,8]"), 8), "shape and dtype"},
      {"negative dim", file(one("F32", "[-2]", "[0,8]"), 8), "shape and dtype"},
      {"overflowing shape", file(one("F32", "[4611686018427387904,4]", "[0,8]"), 8), "shape and dtype"},
      {"gap", file(one("F32", "[2]", "[4,12]"), 12), "gap"},
      {"no offsets", file("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8), "entry of tensor a"},
      {"wrong kind", file("{\"a\":3}", 0), "entry of tensor a"},
  };
  for (const Case& c : cases) {
    const std::string message = error_of(c.bytes);
    EXPECT_EQ(message.empty(), *c.message == '\0') << c.name << ": " << message;
    EXPECT_NE(message.find(c.message), std::string::npos) << c.name << ": " << message;
  }
}

TEST_F(Safetensors, RepeatedNameAndMissingFolder) {
  EXPECT_THROW(write_safetensors(path_, {{"a", at::ones(1)}, {"a", at::ones(1)}}), RunError);
  EXPECT_THROW(write_safetensors("/nonexistent/folder/file", {{"a", at::ones(1)}}), RunError);
  EXPECT_THROW(SafetensorsFile("/nonexistent/file"), RunError);
}

TEST(ChecksumTest, DoesNotDependOnPiecesAndSeesEveryBit) {
  std::string bytes(1000, '\0');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 131);
  Checksum whole;
  whole.add(bytes.data(), bytes.size());
  for (const std::size_t piece : {1u, 7u, 32u, 33u, 999u}) {
    Checksum pieces;
    for (std::size_t at = 0; at < bytes.size(); at += piece)
      pieces.add(bytes.data() + at, std::min(piece, bytes.size() - at));
    EXPECT_EQ(pieces.value(), whole.value()) << piece;
  }
  for (std::size_t i = 0; i < bytes.size(); i += 37) {
    std::string changed = bytes;
    changed[i] ^= 1;
    Checksum checksum;
    checksum.add(changed.data(), changed.size());
    EXPECT_NE(checksum.value(), whole.value()) << i;
  }
  Checksum longer = whole;
  longer.add("\0", 1);
  EXPECT_NE(longer.value(), whole.value());
}

}  // namespace
}  // namespace switchyard
