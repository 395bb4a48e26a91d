// kernels/dropout.h: dropout whose mask depends only on what the value is, never on ranks, threads or order.
#pragma once

#include "base/philox.h"
#include "kernels/types.h"

namespace switchyard::kernels {

// The generator's key of one dropout at one step.
SWITCHYARD_HOST_DEVICE std::uint64_t dropout_key(std::uint64_t seed, std::int64_t step, std::uint64_t site) {
  return mix_key(mix_key(seed, static_cast<std::uint64_t>(step)), site);
}

// out = keep ? x / (1 - p) : 0, keep = to_uniform(word channel % 4) >= p of the block
// philox(dropout_key(seed, step, site), window[sequence] * S + position, channel / 4).
// Backward is the same call on the gradient: the mask is drawn again.
template <class T>
struct Dropout {
  const T* x;                  // [T, D]
  T* out;                      // [T, D]; may be x
  const std::int64_t* window;  // [T / S] global window number of each sequence
  const std::int64_t* step;    // one (device) value
  std::uint64_t seed, site;    // site: which of the model's dropouts
  std::int64_t tokens;
  int seq_len, width;  // width: a multiple of 4
  float p;
};

// The same in place on rows in any order, each known by a number of its own:
// x[r] = keep ? x[r] / (1 - p) : 0, the draw philox(dropout_key(seed, step, site), id[r], channel / 4), word channel
// % 4. Rows from *row_count on, and those whose id is negative (padding), are neither read nor written.
template <class T>
struct RowDropout {
  T* x;                      // [R, N]
  const std::int64_t* id;    // [R]
  const int* row_count;      // one device value
  const std::int64_t* step;  // one (device) value
  std::uint64_t seed, site;
  std::int64_t rows;
  int width;  // N: on CUDA a multiple of 4
  float p;
};

template <class T>
void dropout(const Dropout<T>&, Stream);  // bf16, float
template <class T>
void dropout_cpu(const Dropout<T>&, Range tokens);  // float, double
template <class T>
void row_dropout(const RowDropout<T>&, Stream);  // bf16, float
template <class T>
void row_dropout_cpu(const RowDropout<T>&, Range rows);  // float, double

}  // namespace switchyard::kernels
