#include "train/checksum.h"

#include <algorithm>
#include <cstring>

#include "base/files.h"
#include "base/text.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87ull, kPrime2 = 0xC2B2AE3D27D4EB4Full;

std::uint64_t rotate(std::uint64_t value, int bits) { return (value << bits) | (value >> (64 - bits)); }

// One round of xxHash64's lane (Collet): a multiply carries every bit upwards, the rotation brings them down again.
std::uint64_t mix(std::uint64_t lane, std::uint64_t word) { return rotate(lane + word * kPrime2, 31) * kPrime1; }

}  // namespace

void Checksum::add_block(const unsigned char* block) {
  for (int lane = 0; lane < 4; ++lane) {
    std::uint64_t word;
    std::memcpy(&word, block + 8 * lane, 8);
    lanes_[lane] = mix(lanes_[lane], word);
  }
}

void Checksum::add(const void* bytes, std::size_t count) {
  const auto* next = static_cast<const unsigned char*>(bytes);
  total_ += count;
  if (pending_count_ > 0) {
    const std::size_t taken = std::min(count, sizeof pending_ - pending_count_);
    std::memcpy(pending_ + pending_count_, next, taken);
    pending_count_ += taken;
    next += taken;
    count -= taken;
    if (pending_count_ < sizeof pending_) return;
    add_block(pending_);
    pending_count_ = 0;
  }
  for (; count >= sizeof pending_; next += sizeof pending_, count -= sizeof pending_) add_block(next);
  if (count > 0) std::memcpy(pending_, next, count);
  pending_count_ = count;
}

std::uint64_t Checksum::value() const {
  std::uint64_t result = total_;
  for (const std::uint64_t lane : lanes_) result = mix(result, lane);
  for (std::size_t i = 0; i < pending_count_; ++i) result = mix(result, pending_[i]);
  result ^= result >> 33;
  result *= kPrime2;
  return result ^ (result >> 29);
}

std::string Checksum::hex() const { return format("%016llx", static_cast<unsigned long long>(value())); }

FileSummary summarise_file(const std::string& path) {
  const MappedFile file(path);
  Checksum checksum;
  checksum.add(file.data(), file.size());
  return {file.size(), checksum.hex()};
}

}  // namespace switchyard
