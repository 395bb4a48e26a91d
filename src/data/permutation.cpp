#include "data/permutation.h"

#include "base/error.h"
#include "base/philox.h"

namespace switchyard {

Permutation::Permutation(std::uint64_t size, std::uint64_t key) : size_(size), key_(key) {
  SWITCHYARD_ASSERT(size >= 1, "a permutation of nothing");
  while (half_bits_ < 31 && (1ull << (2 * half_bits_)) < size) ++half_bits_;
}

std::uint64_t Permutation::operator()(std::uint64_t index) const {
  SWITCHYARD_ASSERT(index < size_, "index beyond the permutation");
  constexpr std::uint64_t kRounds = 6;
  const std::uint64_t mask = (1ull << half_bits_) - 1;
  do {
    std::uint64_t left = index >> half_bits_, right = index & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const std::uint64_t mixed = left ^ (philox(key_, right, round).x & mask);
      left = right;
      right = mixed;
    }
    index = left << half_bits_ | right;
  } while (index >= size_);
  return index;
}

}  // namespace switchyard
