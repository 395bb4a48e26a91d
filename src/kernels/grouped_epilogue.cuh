// Of the product kernel (kernels/grouped_gemm.cuh): what a consumer warpgroup does with the sums of its 64 rows.
#pragma once

#include "kernels/grouped_gemm.h"
#include "kernels/grouped_tiles.cuh"

namespace switchyard::kernels::grouped {

// What a consumer warpgroup knows of its place in the finished tile.
struct Place {
  int group, warp, lane, row, piece_row;  // row: of the tile, the first of the thread's two (the other is 8 below)
  std::uint32_t buffers;
  int turn = 0;
  __device__ Place(int consumer, std::uint32_t pieces, int count) {
    group = consumer, lane = threadIdx.x % kWarp, warp = threadIdx.x % 128 / kWarp;
    row = group * 64 + warp * 16 + lane / 4;
    piece_row = warp * 16 + lane % 16;  // the row whose address this lane gives to load_matrices and store_matrices
    buffers = pieces + group * count * kBox;
  }
  __device__ std::uint32_t buffer(int i) const { return buffers + i * kBox; }
  // The one of two buffers that was sent off longer ago, once it has been read.
  __device__ std::uint32_t free_buffer() {
    if (leads()) hopper::wait_stores_read<1>();
    sync();
    return buffer(turn ^= 1);
  }
  // Until both have been read.
  __device__ void free_buffers() const {
    if (leads()) hopper::wait_stores_read<0>();
    sync();
  }
  // Columns 16 q.. of a piece of 64 bf16.
  __device__ std::uint32_t matrices(std::uint32_t piece, int q) const {
    return piece + piece_row * 128 + (((q * 2 + lane / 16) ^ (piece_row & 7)) << 4);
  }
  __device__ bool leads() const { return threadIdx.x % 128 == 0; }
  __device__ void sync() const { hopper::warpgroup_sync(1 + group); }
};

// Of the thread's two rows of a tile.
struct RowWeights {
  float of[2] = {1.0f, 1.0f};
  // With zero as a weight too small to be seen, for relu^2's backward divides by it.
  __device__ RowWeights never_zero() const {
    RowWeights weight;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      weight.of[i] = fabsf(of[i]) < kLeastRowWeight ? copysignf(kLeastRowWeight, of[i]) : of[i];
    return weight;
  }
};
template <class K>
__device__ __forceinline__ RowWeights row_weights(const Problem& p, const Place& place, const Extent& extent, int index,
                                                  int block) {
  RowWeights weight;
  if (!K::kWeighs || !p.row_weight || index >= extent.tiles) return weight;
  const float* rows = p.row_weight + tile_at<K>(p, extent, index, block).row + place.row;
  weight.of[0] = rows[0], weight.of[1] = rows[8];
  return weight;
}

// A finished piece goes out: all its writes, then one thread's copy.
template <class Store>
__device__ __forceinline__ void send_piece(const Place& place, Store store) {
  hopper::async_proxy_fence();
  place.sync();
  if (place.leads()) store();
}

template <class K>
__device__ __forceinline__ void finish_store(float (&d)[K::kColumns / 2], const Maps& maps, const RowWeights& weight,
                                             const Tile& tile, Place& place) {
#pragma unroll
  for (int piece = 0; piece < K::kPieces; ++piece) {
    const std::uint32_t buffer = place.free_buffer();
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      std::uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float low = d[(8 * piece + 2 * q) * 4 + 2 * i], high = d[(8 * piece + 2 * q) * 4 + 2 * i + 1];
        if (K::kEpilogue == Epilogue::kRelu2) {
          low = fmaxf(low, 0.0f), high = fmaxf(high, 0.0f);
          low *= low * weight.of[i % 2], high *= high * weight.of[i % 2];
        }
        r[i] = pack_two(low, high);
      }
      hopper::store_matrices(place.matrices(buffer, q), r);
    }
    send_piece(place, [&] {
      hopper::store_box(&maps.out, buffer, tile.column_tile * K::kColumns + piece * 64, tile.row + place.group * 64, 0);
    });
  }
}

// A row's <d, activation> over the tile's columns, of which each of its four threads has a part.
__device__ __forceinline__ void write_dots(const float (&dots)[2][2], const Problem& p, const Tile& tile,
                                           const Place& place) {
  if (!p.dot) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float dot = lane_sum<4>(dots[i][0] + dots[i][1]);
    if (place.lane % 4 == 0) p.dot[tile.column_tile * p.row_capacity + tile.row + place.row + 8 * i] = dot;
  }
}

template <class K>
__device__ __forceinline__ void finish_relu2_backward(float (&d)[K::kColumns / 2], const Maps& maps, const Problem& p,
                                                      const RowWeights& weight, const Tile& tile,
                                                      const Shared<K>& shared, Ring<K::kStages>& ring, Place& place) {
  float factor[2], dots[2][2] = {};  // w 2 relu(h) = +-2 sqrt(|w|) sqrt(|w relu(h)^2|), of w's sign
#pragma unroll
  for (int i = 0; i < 2; ++i) factor[i] = copysignf(2 * sqrtf(fabsf(weight.of[i])), weight.of[i]);
#pragma unroll
  for (int piece = 0; piece < K::kPieces; ++piece) {
    if (piece % 2 == 0) hopper::barrier_wait(shared.full + 8 * ring.stage, ring.parity);
    const std::uint32_t hidden = shared.hidden(ring.stage, piece % 2, place.group);
    // All of a piece's loads before its first use: two warps a scheduler hide little latency.
    std::uint32_t r[4][4];
#pragma unroll
    for (int q = 0; q < 4; ++q) hopper::load_matrices(place.matrices(hidden, q), r[q]);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // i % 2: which of the two rows; the exact root would take as long as the products
        const int first = (8 * piece + 2 * q) * 4 + 2 * i;
        float low, high;
        unpack_two(r[q][i], low, high);
        dots[i % 2][0] = fmaf(d[first], low, dots[i % 2][0]);
        dots[i % 2][1] = fmaf(d[first + 1], high, dots[i % 2][1]);
        r[q][i] = pack_two(factor[i % 2] * sqrt_fast(fabsf(low)) * d[first],
                           factor[i % 2] * sqrt_fast(fabsf(high)) * d[first + 1]);
      }
    }
    const std::uint32_t buffer = place.free_buffer();
#pragma unroll
    for (int q = 0; q < 4; ++q) hopper::store_matrices(place.matrices(buffer, q), r[q]);
    send_piece(place, [&] {
      hopper::store_box(&maps.out, buffer, tile.column_tile * K::kColumns + piece * 64, tile.row + place.group * 64, 0);
    });
    if (piece % 2 == 0 && piece + 1 < K::kPieces) continue;
    release<K>(shared, ring.stage);  // all have read
    ring.advance();
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) dots[i][0] /= weight.of[i], dots[i][1] /= weight.of[i];
  write_dots(dots, p, tile, place);
}

template <class K>
__device__ __forceinline__ void finish_add(float (&d)[K::kColumns / 2], const Maps& maps, const Tile& tile,
                                           Place& place) {
  const int row = place.row % 64;
#pragma unroll
  for (int piece = 0; piece < K::kColumns / 32; ++piece) {
    const std::uint32_t buffer = place.free_buffer();
#pragma unroll
    for (int q = 0; q < 4; ++q) {  // 8 floats: chunks 2q and 2q + 1 of 16 bytes
      const int chunk = 2 * q + place.lane % 4 / 2, first = (4 * piece + q) * 4;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = row + 8 * i;
        const std::uint32_t at = buffer + r * 128 + ((chunk ^ (r & 7)) << 4) + place.lane % 2 * 8;
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(d[first + 2 * i]), "f"(d[first + 2 * i + 1])
                     : "memory");
      }
    }
    send_piece(place, [&] {
      hopper::add_box(&maps.out, buffer, tile.column_tile * K::kColumns + piece * 32, tile.row + place.group * 64,
                      tile.expert);
    });
  }
}

}  // namespace switchyard::kernels::grouped
