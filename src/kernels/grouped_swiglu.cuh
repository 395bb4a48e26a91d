// Of the product kernel (kernels/grouped_gemm.cuh): SwiGLU in the epilogue. A tile of forward has as many gates as
// values, so that a thread finds both of a hidden unit among its own sums; backward reads both as forward wrote them.
#pragma once

#include "kernels/grouped_epilogue.cuh"

namespace switchyard::kernels::grouped {

struct Two {
  float low, high;
};

// 1 / (1 + exp(-x)) of two numbers, by one division: the special function unit bounds these epilogues. No less than
// 2^-60, so that the product of both denominators stays finite.
__device__ __forceinline__ Two sigmoids(float low, float high) {
  constexpr float kLog2E = 1.44269504f;
  const float a = 1.0f + exp2_fast(fminf(-kLog2E * low, 60.0f));
  const float b = 1.0f + exp2_fast(fminf(-kLog2E * high, 60.0f));
  const float r = reciprocal_fast(a * b);
  return {r * b, r * a};
}

// A piece of 64 columns goes out to `map`: pair(i, r) packs the thread's sums i and i + 1 of the 32 that it has of the
// piece; they belong to its row r.
template <class Pair>
__device__ __forceinline__ void send_pairs(const CUtensorMap& map, Place& place, int column, int row, int half,
                                           Pair pair) {
  std::uint32_t r[4][4];  // made while the buffer is still being read
#pragma unroll
  for (int q = 0; q < 4; ++q) {
#pragma unroll
    for (int i = 0; i < 4; ++i) r[q][i] = pair(8 * q + 2 * i, i % 2);
  }
  const std::uint32_t buffer = place.free_buffer();
#pragma unroll
  for (int q = 0; q < 4; ++q) hopper::store_matrices(place.matrices(buffer, q), r[q]);
  send_piece(place, [&] { hopper::store_box(&map, buffer, column, row, half); });
}

// out = row_weight * silu(gate) * value; then the sums as they are to `hidden` where they are kept. In this order, for
// a piece's fence waits for the next tile's row weights as well, and the first piece gives them time.
template <class K>
__device__ __forceinline__ void finish_swiglu(float (&d)[K::kColumns / 2], const Maps& maps, const Problem& p,
                                              const RowWeights& weight, const Tile& tile, Place& place) {
  constexpr int kValues = K::kColumns / 4;  // of a thread's sums, the first value
  const int row = tile.row + place.group * 64;
#pragma unroll
  for (int piece = 0; piece < K::kUnits / 64; ++piece) {
    const int column = tile.column_tile * K::kUnits + piece * 64;
    send_pairs(maps.out, place, column, row, 0, [&](int i, int r) {
      const int at = 32 * piece + i;
      const Two s = sigmoids(d[at], d[at + 1]);
      return pack_two(weight.of[r] * (d[at] * s.low) * d[kValues + at],
                      weight.of[r] * (d[at + 1] * s.high) * d[kValues + at + 1]);
    });
    if (!p.keep) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      send_pairs(maps.hidden, place, column, row, half, [&](int i, int) {
        const int at = half * kValues + 32 * piece + i;
        return pack_two(d[at], d[at + 1]);
      });
  }
}

// What backward makes of one hidden unit: d by the activation; gate and value become their gradients.
__device__ __forceinline__ void swiglu_backward(float d, float sigmoid, float weight, float& gate, float& value,
                                                float& dot) {
  const float silu = gate * sigmoid, slope = fmaf(silu, 1.0f - sigmoid, sigmoid);
  const float d_silu = d * value, d_value = d * silu;
  dot = fmaf(d_value, value, dot);
  gate = weight * slope * d_silu;
  value = weight * d_value;
}

template <class K>
__device__ __forceinline__ void finish_swiglu_backward(float (&d)[K::kColumns / 2], const Maps& maps, const Problem& p,
                                                       const RowWeights& weight, const Tile& tile,
                                                       const Shared<K>& shared, Ring<K::kStages>& ring,
                                                       const Place& place) {
  const std::uint32_t d_gates = place.buffer(0), d_values = place.buffer(1);
  float dots[2][2] = {};
#pragma unroll
  for (int piece = 0; piece < K::kPieces; ++piece) {
    hopper::barrier_wait(shared.full + 8 * ring.stage, ring.parity);
    const std::uint32_t gates = shared.hidden(ring.stage, 0, place.group);
    const std::uint32_t values = shared.hidden(ring.stage, 1, place.group);
    // A quarter is loaded two ahead of its use: two warps a scheduler hide little latency, and all four at once
    // would take too many registers.
    std::uint32_t g[4][4], u[4][4];
    const auto load = [&](int q) {
      hopper::load_matrices(place.matrices(gates, q), g[q]);
      hopper::load_matrices(place.matrices(values, q), u[q]);
    };
    load(0), load(1);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // i % 2: which of the two rows
        const int at = 32 * piece + 8 * q + 2 * i;
        Two gate, value;
        unpack_two(g[q][i], gate.low, gate.high);
        unpack_two(u[q][i], value.low, value.high);
        const Two s = sigmoids(gate.low, gate.high);
        swiglu_backward(d[at], s.low, weight.of[i % 2], gate.low, value.low, dots[i % 2][0]);
        swiglu_backward(d[at + 1], s.high, weight.of[i % 2], gate.high, value.high, dots[i % 2][1]);
        g[q][i] = pack_two(gate.low, gate.high);
        u[q][i] = pack_two(value.low, value.high);
      }
      if (q == 0) place.free_buffers();
      hopper::store_matrices(place.matrices(d_gates, q), g[q]);
      hopper::store_matrices(place.matrices(d_values, q), u[q]);
      if (q < 2) load(q + 2);
    }
    send_piece(place, [&] {
      const int column = tile.column_tile * K::kColumns + piece * 64, row = tile.row + place.group * 64;
      hopper::store_box(&maps.out, d_gates, column, row, 0);
      hopper::store_box(&maps.out, d_values, column, row, 1);
    });
    release<K>(shared, ring.stage);  // all have read
    ring.advance();
  }
  write_dots(dots, p, tile, place);
}

}  // namespace switchyard::kernels::grouped
