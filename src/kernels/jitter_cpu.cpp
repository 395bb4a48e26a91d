#include <algorithm>

#include "kernels/jitter.h"

namespace switchyard::kernels {

template <class T>
void jitter_cpu(const Jitter<T>& p, Range tokens) {
  const std::uint64_t key = dropout_key(p.noise.seed, *p.noise.step, p.noise.site);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const std::uint64_t place = noise_place(p.noise, t);
    const T* x = p.x + t * p.width;
    for (int c = 0; c < p.width; c += 4) {
      const Draw4 u = draw_noise(Noise::kUniform, philox(key, place, static_cast<std::uint64_t>(c / 4)));
      for (int j = 0; j < std::min(4, p.width - c); ++j) {
        const T product = x[c + j] * static_cast<T>(jitter_factor(u.value[j], p.amount));
        p.out[t * p.width + c + j] = p.add ? p.add[t * p.width + c + j] + product : product;
      }
    }
  }
}

template void jitter_cpu(const Jitter<float>&, Range);
template void jitter_cpu(const Jitter<double>&, Range);

}  // namespace switchyard::kernels
