// A seeded permutation of 0 … size-1 that needs no table: a Feistel network over philox on the next power of four,
// walked until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
#pragma once

#include <cstdint>

namespace switchyard {

class Permutation {
 public:
  Permutation(std::uint64_t size, std::uint64_t key);   // size >= 1
  std::uint64_t operator()(std::uint64_t index) const;  // index < size; a bijection
  std::uint64_t size() const { return size_; }

 private:
  std::uint64_t size_, key_;
  int half_bits_ = 1;
};

}  // namespace switchyard
