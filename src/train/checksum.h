// A 64-bit checksum of a stream of bytes, fast enough (eight bytes a step, four lanes) not to slow a checkpoint down.
// It finds truncation and flipped bits, not an adversary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace switchyard {

class Checksum {
 public:
  void add(const void* bytes, std::size_t count);
  std::uint64_t value() const;
  std::string hex() const;  // 16 lower-case digits

 private:
  void add_block(const unsigned char* block);  // 32 bytes

  std::uint64_t lanes_[4] = {0x9E3779B97F4A7C15ull, 0xC2B2AE3D27D4EB4Full, 0x165667B19E3779F9ull,
                             0x27D4EB2F165667C5ull};
  unsigned char pending_[32] = {};
  std::size_t pending_count_ = 0;
  std::uint64_t total_ = 0;
};

struct FileSummary {
  std::uint64_t bytes = 0;
  std::string checksum;
};
FileSummary summarise_file(const std::string& path);  // RunError when it cannot be read

}  // namespace switchyard
