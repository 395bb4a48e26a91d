// The sum that every MPI reduction takes: terms in rank order, in fp32, rounded once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace switchyard {

inline float bfloat16_to_float(std::uint16_t bits) {
  const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// To nearest, ties to even; a NaN stays one.
inline std::uint16_t float_to_bfloat16(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  if (value != value) return static_cast<std::uint16_t>((word >> 16) | 0x40);
  return static_cast<std::uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

inline float load(float value) { return value; }
inline float load(std::uint16_t bits) { return bfloat16_to_float(bits); }
inline void store(float* out, float value) { *out = value; }
inline void store(std::uint16_t* out, float value) { *out = float_to_bfloat16(value); }

// out[i] = terms[0][i] + terms[1][i] + ... ; out may be one of the terms.
template <class T>
void ordered_sum(const T* const* terms, int n_terms, T* out, std::size_t count) {
  constexpr std::size_t kBlock = 1024;  // a fixed length, so that the inner loops become vector code
  float sum[kBlock];
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t length = count - begin < kBlock ? count - begin : kBlock;
    const T* first = terms[0] + begin;
    for (std::size_t i = 0; i < length; ++i) sum[i] = load(first[i]);
    for (int t = 1; t < n_terms; ++t) {
      const T* term = terms[t] + begin;
      if (length == kBlock) {
        for (std::size_t i = 0; i < kBlock; ++i) sum[i] += load(term[i]);
      } else {
        for (std::size_t i = 0; i < length; ++i) sum[i] += load(term[i]);
      }
    }
    for (std::size_t i = 0; i < length; ++i) store(out + begin + i, sum[i]);
  }
}

}  // namespace switchyard
