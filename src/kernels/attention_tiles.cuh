// Of kernels/attention_backward.cu: the problem, where a block keeps what, and the products of 64 x 64 scores that a
// warpgroup makes. Tensors in shared memory are rows of 64 channels, 128 bytes each, as the copy engine swizzles them.
#pragma once

#include "kernels/divisor.h"
#include "kernels/hopper.cuh"
#include "kernels/vector.cuh"
#include "kernels/wgmma.cuh"

namespace switchyard::kernels::attention {

constexpr int kChannels = 64;
constexpr int kPart = 64, kTile = 2 * kPart;  // tokens of a warpgroup's part of an item, and of a tile that passes by
constexpr int kPartBytes = kPart * kChannels * 2, kTileBytes = 2 * kPartBytes;
constexpr int kWarpgroup = 128;

struct Maps {
  CUtensorMap qkv, out, d_out, d_qkv;  // [sequences, seq_len, width]; boxes of 64 rows
};

struct Problem {
  const float* log_sums;
  float* rows;     // [sequences, heads, row_tiles, 2, 128]: log2 of the denominators, then the dots of out and d_out
  int* scheduler;  // the next item
  int seq_len, row_tiles, heads, kv_heads, group, window;
  Divisor tiles;  // items of a head of a sequence
  int items;
  float scale;  // of the scores
  const float *cos, *sin, *inverse_rms;
};

// Tokens of one head of one sequence, for which a block makes gradients.
struct Item {
  int sequence, head, tile;  // head: of the queries, or of the keys and values
  __device__ Item(const Problem& p, int index, int heads) {
    const int of = p.tiles.quotient(index);
    tile = p.tiles.remainder(index), sequence = of / heads, head = of - sequence * heads;
  }
};

// A block's warpgroups that multiply, each with a part of 64 tokens of an item, and its shared memory: of two items the
// tensors that stay, a ring of stages with the two that pass by, what is known of rows, and barriers.
template <int kWarpgroups, int kTensors, int kItemSums, int kStageSums, int kRingStages>
struct Block {
  static constexpr int kConsumers = kWarpgroups, kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kRegisters = 65536 / kThreads / 8 * 8, kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = (kRegisters * (1 + kConsumers) - kProducerRegisters) / kConsumers / 8 * 8;
  static constexpr int kItems = 2, kStages = kRingStages;
  static constexpr int kRows = kConsumers * kPart;  // of an item
  static constexpr int kTensorBytes = kConsumers * kPartBytes, kItemBytes = kTensors * kTensorBytes;
  static constexpr int kStageBytes = 2 * kTileBytes + kStageSums * 4;
  static constexpr int kBytes =
      1024 + kItems * (kItemBytes + kItemSums * 4) + kStages * kStageBytes + 2 * 8 * (kStages + kItems) + 4 * kItems;
  static_assert(kBytes <= 227 * 1024);
  // Behind a stage that products still read at most one tile of an item can be another warpgroup's alone.
  static_assert(kConsumers <= 4 || kStages > 2);
  std::uint32_t items, stages, item_sums, stage_sums, full, empty, item_full, item_empty, words;

  __device__ explicit Block(const void* raw)
      : items((hopper::smem_address(raw) + 1023) & ~1023u),
        stages(items + kItems * kItemBytes),
        item_sums(stages + kStages * 2 * kTileBytes),
        stage_sums(item_sums + kItems * kItemSums * 4),
        full(stage_sums + kStages * kStageSums * 4),
        empty(full + 8 * kStages),
        item_full(empty + 8 * kStages),
        item_empty(item_full + 8 * kItems),
        words(item_empty + 8 * kItems) {}
  __device__ void init() const {
    constexpr int kReaders = kConsumers * kWarpgroup / kWarp;
    for (int i = 0; i < kStages; ++i)
      hopper::barrier_init(full + 8 * i, 1), hopper::barrier_init(empty + 8 * i, kReaders);
    for (int i = 0; i < kItems; ++i)
      hopper::barrier_init(item_full + 8 * i, 1), hopper::barrier_init(item_empty + 8 * i, kReaders);
    hopper::barrier_init_fence();
  }
  // Tensors, as rows.
  __device__ std::uint32_t staying(int slot, int tensor) const {
    return items + slot * kItemBytes + tensor * kTensorBytes;
  }
  __device__ std::uint32_t passing(int stage, int tensor) const { return stages + (2 * stage + tensor) * kTileBytes; }
  __device__ std::uint32_t item_sums_at(int slot) const { return item_sums + slot * kItemSums * 4; }
  __device__ std::uint32_t stage_sums_at(int stage) const { return stage_sums + stage * kStageSums * 4; }
};

// A position among the stages, or the items.
template <int kCount>
struct Ring {
  int at = 0;
  std::uint32_t parity;
  __device__ explicit Ring(std::uint32_t parity) : parity(parity) {}
  __device__ void advance() {
    if (++at == kCount) at = 0, parity ^= 1;
  }
  __device__ void await(std::uint32_t barriers) const { hopper::barrier_wait(barriers + 8 * at, parity); }
};

// A warp of the consumers is done with what this barrier guards.
__device__ __forceinline__ void release(std::uint32_t barrier) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) hopper::barrier_arrive(barrier);
}

// The stage that products of a warp may still be reading.
struct HeldStage {
  int at = -1;
  __device__ __forceinline__ void let_go(std::uint32_t barriers) {
    if (at >= 0) release(barriers + 8 * at), at = -1;
  }
};

// Where a consumer thread stands: rows g and g + 8 of its warp's 16, columns 2 q and 2 q + 1 of every 8.
struct Place {
  const int group = threadIdx.x / kWarpgroup - 1, warp = threadIdx.x / kWarp % 4, lane = threadIdx.x % kWarp;
  const int g = lane / 4, q = lane % 4;

  __device__ int row(int half) const { return 16 * warp + g + 8 * half; }
  // Of the 16 bytes that this lane stores of a 16 x 16 square, in a part of 64 rows.
  __device__ std::uint32_t square(int step) const {
    const int line = 16 * warp + lane % 16, chunk = 2 * step + lane / 16;
    return line * 128 + ((chunk ^ (line & 7)) << 4);
  }
};

using Sums = float[32];  // [64, 64] of a warpgroup; of a thread as hopper::multiply() says
// The same in bf16, as the left operand of products: a quarter for every 16 columns.
using Operand = std::uint32_t[4][4];

__device__ __forceinline__ void pack_operand(const Sums& d, Operand& a) {
#pragma unroll
  for (int i = 0; i < 16; ++i) a[i / 4][i % 4] = pack_two(d[2 * i], d[2 * i + 1]);
}

// The same in all lanes, and known to be: descriptors of products then come from uniform registers.
__device__ __forceinline__ std::uint32_t uniform(std::uint32_t address) { return __shfl_sync(kAllLanes, address, 0); }

// d = a b', 64 rows each, in shared memory.
__device__ __forceinline__ void multiply_rows(Sums& d, std::uint32_t a, std::uint32_t b) {
  const std::uint64_t left = hopper::operand_k_major(a), right = hopper::operand_k_major(b);
  hopper::multiply_anew<0, 0>(d, left, right);
#pragma unroll
  for (int step = 1; step < 4; ++step) hopper::multiply<0, 0>(d, left + 2 * step, right + 2 * step);
}
// d += a b, b 64 rows in shared memory.
__device__ __forceinline__ void add_product(Sums& d, const Operand& a, std::uint32_t b) {
  const std::uint64_t rows = hopper::operand_mn_major(b);
#pragma unroll
  for (int step = 0; step < 4; ++step) hopper::multiply<1>(d, a[step], rows + 128 * step);
}
// Here and not later: the compiler would put zeros where products already run, and wait for them.
__device__ __forceinline__ void clear(Sums& d) {
#pragma unroll
  for (int i = 0; i < 32; ++i) asm volatile("mov.f32 %0, 0f00000000;" : "=f"(d[i]));
}
// Behind a wait for products: their sums are not read before it, their left operand is not overwritten before it.
__device__ __forceinline__ void settled(Sums& d) {
#pragma unroll
  for (int i = 0; i < 32; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
__device__ __forceinline__ void settled(Operand& a) {
#pragma unroll
  for (int i = 0; i < 16; ++i) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

// Whether all of 64 queries see all of 64 keys: query i sees keys i - window + 1 to i.
__device__ __forceinline__ bool all_seen(const Problem& p, int query, int key) {
  return key + kPart - 1 <= query && key > query + kPart - 1 - p.window;
}

__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
constexpr float kLog2E = 1.4426950408889634f;

// Sums, times a factor, to 64 rows of a head's gradient, by way of shared memory that no one else uses any more.
__device__ __forceinline__ void store_part(Sums& d, float factor, const CUtensorMap& map, std::uint32_t by,
                                           const Place& place, int column, int row, int sequence) {
  Operand packed;
#pragma unroll
  for (int i = 0; i < 32; ++i) d[i] *= factor;
  pack_operand(d, packed);
#pragma unroll
  for (int step = 0; step < 4; ++step) hopper::store_matrices(by + place.square(step), packed[step]);
  hopper::async_proxy_fence();
  hopper::warpgroup_sync(1 + place.group);
  if (threadIdx.x % kWarpgroup == 0) hopper::store_box(&map, by, column, row, sequence);
}

// Rows of a head's 64 channels, by boxes of 64.
template <int kRows>
__device__ __forceinline__ void load_rows(std::uint32_t to, const CUtensorMap& map, std::uint32_t full, int column,
                                          int row, int sequence) {
#pragma unroll
  for (int i = 0; i < kRows / kPart; ++i)
    hopper::load_box<1>(to + i * kPartBytes, &map, full, column, row + i * kPart, sequence);
}

// What thread 0 does, item after item: tells consumers its number and has its tensors loaded.
// staying(index, slot): announces bytes at block.item_full, and loads them; passing(index): the rest.
template <class B, class Staying, class Passing>
__device__ __forceinline__ void produce(const Problem& p, const B& block, Staying staying, Passing passing) {
  for (Ring<B::kItems> slot(1);; slot.advance()) {
    const int index = atomicAdd(p.scheduler, 1);
    slot.await(block.item_empty);
    hopper::store_word(block.words + 4 * slot.at, index < p.items ? index : -1);
    if (index >= p.items) return hopper::barrier_arrive(block.item_full + 8 * slot.at);
    staying(index, slot.at);
    passing(index);
  }
}

// What consumers do with each: consume(index, slot, leave), in which leave(), called once the item is under way, lets
// the slot of the one before be filled again: its results go out from there meanwhile.
template <class B, class Consume>
__device__ __forceinline__ void each_item(const B& block, Consume consume) {
  int before = -1;
  const auto await_stores = [] {
    if (threadIdx.x % kWarpgroup == 0) hopper::wait_stores_read<0>();
  };
  for (Ring<B::kItems> slot(0);; slot.advance()) {
    slot.await(block.item_full);
    int index;
    hopper::load_word(block.words + 4 * slot.at, index);
    if (index < 0) return await_stores();
    consume(index, slot.at, [&] {
      if (before < 0) return;
      await_stores();
      release(block.item_empty + 8 * before);
    });
    before = slot.at;
  }
}

}  // namespace switchyard::kernels::attention
