// How many tokens' logits exist at a time. No torch: the estimate of memory reads it too.
#pragma once

#include <algorithm>
#include <cstdint>

namespace switchyard::ops {

// A chunk of logits [chunk, vocab] stays below 1 GiB, but for the fewest tokens that fill a product: 256.
inline std::int64_t head_chunk_tokens(std::int64_t vocab, std::int64_t element_bytes) {
  const std::int64_t fit = (std::int64_t{1} << 30) / (vocab * element_bytes);
  return std::max<std::int64_t>(256, fit / 256 * 256);
}

}  // namespace switchyard::ops
