// Philox4x32-10, a counter-based generator (Salmon et al., SC'11): the same (key, counter) gives the same four words on
// every machine, rank, thread and GPU. Nothing keeps generator state; who draws says what the draw is for.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SWITCHYARD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SWITCHYARD_HOST_DEVICE inline
#endif

namespace switchyard {

struct Words4 {
  std::uint32_t x, y, z, w;
};

SWITCHYARD_HOST_DEVICE Words4 philox(std::uint64_t key, std::uint64_t counter_low, std::uint64_t counter_high) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  Words4 c{static_cast<std::uint32_t>(counter_low), static_cast<std::uint32_t>(counter_low >> 32),
           static_cast<std::uint32_t>(counter_high), static_cast<std::uint32_t>(counter_high >> 32)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = 0xD2511F53ull * c.x, b = 0xCD9E8D57ull * c.z;
    c = {static_cast<std::uint32_t>(b >> 32) ^ c.y ^ k0, static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32) ^ c.w ^ k1, static_cast<std::uint32_t>(a)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// Uniform in (0, 1): never 0, so a logarithm is safe.
SWITCHYARD_HOST_DEVICE float to_uniform(std::uint32_t word) {
  return (static_cast<float>(word >> 8) + 0.5f) * (1.0f / 16777216.0f);
}

// A key for one purpose, from the run's seed and that purpose's name or number.
SWITCHYARD_HOST_DEVICE std::uint64_t mix_key(std::uint64_t seed, std::uint64_t purpose) {
  std::uint64_t z = seed + 0x9E3779B97F4A7C15ull * (purpose + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

}  // namespace switchyard
