#include <algorithm>

#include "base/philox.h"
#include "kernels/dropout.h"

namespace switchyard::kernels {

template <class T>
void dropout_cpu(const Dropout<T>& p, Range tokens) {
  const std::uint64_t key = dropout_key(p.seed, *p.step, p.site);
  const T scale = p.p < 1.0f ? T(1) / (T(1) - static_cast<T>(p.p)) : T(0);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const std::int64_t place = p.window[t / p.seq_len] * p.seq_len + t % p.seq_len;
    const T* x = p.x + t * p.width;
    T* out = p.out + t * p.width;
    for (int c = 0; c < p.width; c += 4) {
      const Words4 words = philox(key, static_cast<std::uint64_t>(place), static_cast<std::uint64_t>(c / 4));
      const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
      for (int j = 0; j < 4; ++j) out[c + j] = to_uniform(word[j]) >= p.p ? x[c + j] * scale : T(0);
    }
  }
}

template void dropout_cpu(const Dropout<float>&, Range);
template void dropout_cpu(const Dropout<double>&, Range);

}  // namespace switchyard::kernels
