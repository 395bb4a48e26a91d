// Of kernels/product_chain.cu: the last product's sums as an update of weights.
#pragma once

#include "kernels/chain_tiles.cuh"
#include "kernels/muon_rates.cuh"

namespace switchyard::kernels::chain {

// What the part will update, on its way to the cache while the part is computed.
__device__ __forceinline__ void fetch_weights(const Shape& shape, const Step& step, const Tile& tile,
                                              const Part& part) {
  const float* weight = shape.update.batch.matrices[tile.matrix].weight;
  const unsigned bytes = min(kTile, step.n - tile.n) * sizeof(float);
  for (int row = part.row; row < min(part.row + 64, step.m); ++row)
    hopper::fetch_bytes(weight + static_cast<std::int64_t>(row) * step.n + tile.n, bytes);
}

// Device memory, by a predicate instead of a branch, for a thread's accesses follow one another closely.
__device__ __forceinline__ float4 load_if(bool there, const float* from) {
  float4 v;
  asm volatile(
      "{\n.reg .pred there;\nsetp.ne.b32 there, %5, 0;\nmov.f32 %0, 0f00000000;\nmov.f32 %1, 0f00000000;\n"
      "mov.f32 %2, 0f00000000;\nmov.f32 %3, 0f00000000;\n@there ld.global.v4.f32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&f"(v.x), "=&f"(v.y), "=&f"(v.z), "=&f"(v.w)
      : "l"(from), "r"(static_cast<int>(there)));
  return v;
}
__device__ __forceinline__ void store_if(bool there, float* to, float4 v) {
  asm volatile(
      "{\n.reg .pred there;\nsetp.ne.b32 there, %5, 0;\n@there st.global.v4.f32 [%4], {%0, %1, %2, %3};\n}" ::"f"(v.x),
      "f"(v.y), "f"(v.z), "f"(v.w), "l"(to), "r"(static_cast<int>(there))
      : "memory");
}
__device__ __forceinline__ void store_if(bool there, bf16* to, uint2 v) {
  asm volatile("{\n.reg .pred there;\nsetp.ne.b32 there, %3, 0;\n@there st.global.v2.b32 [%2], {%0, %1};\n}" ::"r"(v.x),
               "r"(v.y), "l"(to), "r"(static_cast<int>(there))
               : "memory");
}

// The weights of a tile's matrix, and how to update them.
struct Weights {
  MuonRates rates;
  bool apply;
  float* weight;
  bf16* copy;
};

// weight -= what the sums say, and its copy anew. Through shared memory, so that half a warp has 64 columns of a row;
// each warp reads what it wrote.
template <int kColumns>
__device__ __forceinline__ void update_part(const float (&d)[kColumns / 2], const Weights& weights, const Step& step,
                                            const Tile& tile, const Part& part, const Place& place, Buffer buffer) {
  if (!weights.apply) return;
  for (int i = 0; i < Kind::kBuffers; ++i, buffer.ring.advance())
    hopper::barrier_wait(buffer.sent + 8 * buffer.ring.stage, buffer.ring.parity);
  constexpr int kRows = 8;  // a thread's of a piece, every second of its warp's
  const int below = place.warp * 16 + place.lane / 16, right = place.lane % 16 * 4;
  const int rows_left = step.m - part.row - below, columns_left = step.n - tile.n - right;
  const std::int64_t first = static_cast<std::int64_t>(part.row + below) * step.n + tile.n + right;
#pragma unroll
  for (int piece = 0; piece < kColumns / kPiece; ++piece, buffer.ring.advance()) {
    const auto present = [&](int i) { return 2 * i < rows_left && piece * kPiece < columns_left; };
    const auto at = [&](int i) { return first + piece * kPiece + 2 * i * step.n; };
    float4 held[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) held[i] = load_if(present(i), weights.weight + at(i));
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float* sums = d + 32 * piece + 8 * q;
      const std::uint32_t packed[4] = {pack_halves(sums[0], sums[1]), pack_halves(sums[2], sums[3]),
                                       pack_halves(sums[4], sums[5]), pack_halves(sums[6], sums[7])};
      hopper::store_matrices(place.matrices(buffer.address(), q), packed);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = below + 2 * i;
      uint2 raw;
      hopper::load_words(buffer.address() + row * 128 + (((right / 8) ^ (row & 7)) << 4) + right % 8 * 2, raw);
      const float2 low = unpack_halves(raw.x), high = unpack_halves(raw.y);
      const MuonRates& rates = weights.rates;
      const float4 now{rates.updated(held[i].x, low.x), rates.updated(held[i].y, low.y),
                       rates.updated(held[i].z, high.x), rates.updated(held[i].w, high.y)};
      store_if(present(i), weights.weight + at(i), now);
      store_if(present(i) && weights.copy, weights.copy + at(i), uint2{pack_two(now.x, now.y), pack_two(now.z, now.w)});
    }
  }
  place.sync();  // all have read
}

}  // namespace switchyard::kernels::chain
