#include <algorithm>

#include "base/philox.h"
#include "kernels/dropout.h"

namespace switchyard::kernels {
namespace {

// One row's draws; width need not be a multiple of the four that a draw serves.
template <class T>
void drop_row(const T* x, T* out, int width, float p, std::uint64_t key, std::int64_t id) {
  const T scale = p < 1.0f ? T(1) / (T(1) - static_cast<T>(p)) : T(0);
  for (int c = 0; c < width; c += 4) {
    const Words4 words = philox(key, static_cast<std::uint64_t>(id), static_cast<std::uint64_t>(c / 4));
    const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
    for (int j = 0; j < std::min(4, width - c); ++j) out[c + j] = to_uniform(word[j]) >= p ? x[c + j] * scale : T(0);
  }
}

}  // namespace

template <class T>
void dropout_cpu(const Dropout<T>& p, Range tokens) {
  const std::uint64_t key = dropout_key(p.seed, *p.step, p.site);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const std::int64_t place = p.window[t / p.seq_len] * p.seq_len + t % p.seq_len;
    drop_row(p.x + t * p.width, p.out + t * p.width, p.width, p.p, key, place);
  }
}

template <class T>
void row_dropout_cpu(const RowDropout<T>& p, Range rows) {
  const std::uint64_t key = dropout_key(p.seed, *p.step, p.site);
  for (std::int64_t r = rows.begin; r < std::min<std::int64_t>(rows.end, *p.row_count); ++r) {
    if (p.id[r] >= 0) drop_row(p.x + r * p.width, p.x + r * p.width, p.width, p.p, key, p.id[r]);
  }
}

template void dropout_cpu(const Dropout<float>&, Range);
template void dropout_cpu(const Dropout<double>&, Range);
template void row_dropout_cpu(const RowDropout<float>&, Range);
template void row_dropout_cpu(const RowDropout<double>&, Range);

}  // namespace switchyard::kernels
