// Of the product kernel (kernels/grouped_gemm.cuh): its kinds, its problem, and the tiles that blocks work through.
#pragma once

#include "kernels/divisor.h"
#include "kernels/hopper.cuh"
#include "kernels/vector.cuh"

namespace switchyard::kernels::grouped {

enum class Form { kForward, kDgrad, kWgrad };  // rows W^T, rows W, a^T b
enum class Gather { kNone, kRows, kColumns };  // which operand's rows come through an index; columns: wgrad's alone
enum class Epilogue { kStore, kRelu2, kRelu2Backward, kSwiglu, kSwigluBackward, kAdd };

constexpr int kTileRows = 128, kDepth = 64;        // depth: of K, a stage
constexpr int kRowBytes = kTileRows * kDepth * 2;  // the left operand of a stage
constexpr int kBox = 64 * 64 * 2;                  // bytes of a finished piece: 64 rows of 64 bf16 or 32 floats
constexpr int kSharedLimit = 227 * 1024, kSharedRest = 1024 + 256;  // rest: alignment, barriers

template <Form F, Gather G, int Blocks, Epilogue E, int Columns>
struct Kind {
  static constexpr Form kForm = F;
  static constexpr Epilogue kEpilogue = E;
  static constexpr Gather kGather = G;
  static constexpr bool kGathers = G != Gather::kNone;
  static constexpr int kBlocks = Blocks;  // of a cluster
  // They take neighbouring tiles of rows and share the columns that both multiply; or the other way round, for what is
  // gathered reaches one block alone.
  static constexpr bool kSharesRows = G == Gather::kColumns;
  static constexpr int kColumns = Columns;
  static constexpr bool kGated = E == Epilogue::kSwiglu;  // half of a tile's columns are gates, half their values
  static constexpr int kUnits = kGated ? Columns / 2 : Columns;  // columns of the result
  static constexpr int kPieces = Columns / 64;
  static constexpr int kColumnBytes = Columns * kDepth * 2;
  // What backward of an activation reads of a tile's hidden units comes behind the operands through the ring: of each
  // consumer warpgroup a box of 64 x 64 for every piece, two with gates and values, two boxes a stage.
  static constexpr bool kReadsHidden = E == Epilogue::kRelu2Backward || E == Epilogue::kSwigluBackward;
  static constexpr int kHalves = E == Epilogue::kSwigluBackward ? 2 : 1;
  static constexpr int kHiddenBoxes = kReadsHidden ? kHalves * kPieces : 0;
  static constexpr bool kWeighs = kReadsHidden || kGated || E == Epilogue::kRelu2;  // rows are times their weight
  static constexpr int kBuffers = 2;                                                // a consumer warpgroup
  static constexpr int kStages = (kSharedLimit - kSharedRest - 2 * kBuffers * kBox) / (kRowBytes + kColumnBytes);
  static constexpr int kShared = kStages * (kRowBytes + kColumnBytes) + 2 * kBuffers * kBox + kSharedRest;
  // Tiles are handed out as blocks get free, so that blocks stay close to one another in what they read, and wgrad's
  // unequal tiles come to an even end. Where forward and dgrad gather, the warps that copy have no time for it.
  static constexpr bool kDraws = F == Form::kWgrad || G == Gather::kNone;
  // Warpgroups that fill the ring, stage by stage in turn. What gathers a stage's tokens anew for each tile takes one
  // of them longer than the products take; sums of 256 columns leave no registers for a second.
  static constexpr int kProducers = F == Form::kWgrad && kGathers && Columns <= 192 ? 2 : 1;
  static constexpr int kReaders = kGathers ? 4 * kProducers : 1;  // of a tile's number, beside the consumers' 8 warps
  static constexpr int kThreads = 128 * (kProducers + 2);
  // Of the 64K of a multiprocessor, for a thread.
  static constexpr int kProducerRegisters = kProducers == 2 ? 80 : kGathers ? 88 : 56;
  static constexpr int kConsumerRegisters = kProducers == 2 ? 176 : kGathers ? 208 : 224;
  static_assert(128 * (kProducers * kProducerRegisters + 2 * kConsumerRegisters) <=
                65536 / kThreads / 8 * 8 * kThreads);
  static_assert(kStages % kProducers == 0, "a stage is filled by one warpgroup alone");
};

struct Problem {
  const bf16* gathered;  // [T, gathered_width]
  const int* row_index;
  const int *offset, *count, *tile_expert, *longest_first;
  int* scheduler;
  const float* row_weight;
  float* dot;
  bool keep;       // SwiGLU: the pre-activation is wanted too
  bool keep_rows;  // the gathered rows are wanted too
  std::int64_t row_capacity;
  int experts, depth_steps, gathered_width;
  Divisor alignment;
  Divisor column_tiles, tiles_an_expert;  // tiles across; of one expert's gradient. What a cluster shares counts once
};

struct Tile {
  int row, column_tile, expert, first_step, steps;
  bool shares;  // the cluster's tiles are one expert's, so that its blocks load together what both multiply
};

// Of a launch, for all of its threads.
struct Extent {
  int rows, tiles;  // rows in use; tiles of all, those of a cluster counted once
};
template <class K>
__device__ __forceinline__ Extent extent_of(const Problem& p) {
  if (K::kForm == Form::kWgrad) return {0, p.experts * static_cast<int>(p.tiles_an_expert.by)};
  const int rows = p.offset ? p.offset[p.experts] : static_cast<int>(p.row_capacity);
  constexpr int kRows = kTileRows * K::kBlocks;
  return {rows, (rows + kRows - 1) / kRows * static_cast<int>(p.column_tiles.by)};
}

template <class K>
__device__ __forceinline__ Tile tile_at(const Problem& p, const Extent& extent, int index, int block) {
  Tile t;
  t.shares = true;
  if constexpr (K::kForm == Form::kWgrad) {
    const int place = p.tiles_an_expert.quotient(index), rest = p.tiles_an_expert.remainder(index);
    const int row_tile = p.column_tiles.quotient(rest), column_tile = p.column_tiles.remainder(rest);
    t.column_tile = K::kSharesRows ? column_tile * K::kBlocks + block : column_tile;
    t.row = (K::kSharesRows ? row_tile : row_tile * K::kBlocks + block) * kTileRows;
    t.expert = p.longest_first ? p.longest_first[place] : place;
    t.first_step = p.offset ? p.offset[t.expert] / kDepth : 0;
    const int rows = p.count ? p.count[t.expert] : static_cast<int>(p.row_capacity);
    t.steps = (rows + kDepth - 1) / kDepth;
  } else {
    const int row_tile = p.column_tiles.quotient(index);
    t.column_tile = p.column_tiles.remainder(index);
    // The last tile may have no neighbour: then all blocks of its cluster take it, and write the same.
    const auto row_of = [&](int of) { return min((row_tile * K::kBlocks + of) * kTileRows, extent.rows - kTileRows); };
    const auto expert_of = [&](int row) { return p.tile_expert ? p.tile_expert[p.alignment.quotient(row)] : 0; };
    t.row = row_of(block);
    t.expert = expert_of(t.row);
    static_assert(K::kBlocks <= 2, "a tile has one neighbour");
    if (K::kBlocks > 1) t.shares = t.expert == expert_of(row_of(block ^ 1));
    t.first_step = 0;
    t.steps = p.depth_steps;
  }
  return t;
}

// Where a block keeps what, as addresses in shared memory.
template <class K>
struct Shared {
  std::uint32_t rows, columns, pieces, full, empty, next_full, next_empty, next;  // next: 32 bytes
  __device__ explicit Shared(const void* raw) {
    rows = (hopper::smem_address(raw) + 1023) & ~1023u;
    columns = rows + K::kStages * kRowBytes;
    pieces = columns + K::kStages * K::kColumnBytes;
    full = pieces + 2 * K::kBuffers * kBox;
    empty = full + 8 * K::kStages;
    next_full = empty + 8 * K::kStages;  // [2] the ring of two that hands out tiles
    next_empty = next_full + 16;
    next = next_empty + 16;
  }
  __device__ void init() const {
    for (int i = 0; i < K::kStages; ++i) {
      hopper::barrier_init(full + 8 * i, K::kGathers ? 129 : 1);
      hopper::barrier_init(empty + 8 * i, 2 * K::kBlocks);
    }
    for (int i = 0; i < 2; ++i) {
      hopper::barrier_init(next_full + 8 * i, 1);
      hopper::barrier_init(next_empty + 8 * i, K::kBlocks * (8 + K::kReaders));
    }
    hopper::barrier_init_fence();
  }
  // Where a stage holds a consumer warpgroup's i-th box of hidden units, of two.
  __device__ std::uint32_t hidden(int stage, int i, int group) const {
    return (i == 0 ? rows + stage * kRowBytes : columns + stage * K::kColumnBytes) + group * kBox;
  }
};

// A ring position: stage and the parity of its phase.
template <int kStages>
struct Ring {
  int stage;
  std::uint32_t parity;
  __device__ explicit Ring(std::uint32_t parity, int stage = 0) : stage(stage), parity(parity) {}
  __device__ void advance(int by = 1) {
    if ((stage += by) >= kStages) stage -= kStages, parity ^= 1;
  }
};

// Thread t of a consumer warpgroup tells block t's producer that a stage is free.
template <class K>
__device__ __forceinline__ void release(const Shared<K>& shared, int stage) {
  const int t = threadIdx.x % 128;
  if (K::kBlocks == 1) {
    if (t == 0) hopper::barrier_arrive(shared.empty + 8 * stage);
  } else if (t < K::kBlocks) {
    hopper::barrier_arrive_at(shared.empty + 8 * stage, t);
  }
}

// A draw, by one thread of a cluster, which goes on until it uses the number. (atomicAdd of one, where a whole warp
// comes here, is gathered over its lanes, and they wait for memory at once.)
__device__ __forceinline__ int draw_tile(int* scheduler) {
  return static_cast<int>(atomicInc(reinterpret_cast<unsigned*>(scheduler), 0x7fffffffu));
}
// At the end, by one thread of each cluster: the last leaves the scheduler as it found it.
__device__ __forceinline__ void leave_scheduler(int* scheduler, int clusters) {
  const auto last = static_cast<unsigned>(clusters - 1);
  if (atomicInc(reinterpret_cast<unsigned*>(scheduler) + 1, last) == last) *static_cast<volatile int*>(scheduler) = 0;
}

// The tile after the n-th, which block 0's producer drew and published to the cluster: next_empty is block 0's alone
// and counts the readers of all blocks, next_full is each block's own.
template <class K, class Word = int>
__device__ __forceinline__ Word next_tile(const Shared<K>& shared, int n, bool whole_warp) {
  const int slot = n & 1;
  hopper::barrier_wait(shared.next_full + 8 * slot, (n >> 1) & 1);
  Word value;
  hopper::load_word(shared.next + sizeof(Word) * slot, value);
  if (whole_warp) __syncwarp();
  if (!whole_warp || threadIdx.x % kWarp == 0) {
    if (K::kBlocks == 1)
      hopper::barrier_arrive(shared.next_empty + 8 * slot);
    else
      hopper::barrier_arrive_at(shared.next_empty + 8 * slot, 0);
  }
  return value;
}

template <class K, class Word>
__device__ __forceinline__ void publish_tile(const Shared<K>& shared, int n, Word value, int block) {
  const int slot = n & 1;
  if (block == 0) hopper::barrier_wait(shared.next_empty + 8 * slot, ((n >> 1) & 1) ^ 1);
  if constexpr (K::kBlocks == 1) {
    hopper::store_word(shared.next + sizeof(Word) * slot, value);
    hopper::barrier_arrive(shared.next_full + 8 * slot);
  } else {
    for (int b = 0; block == 0 && b < K::kBlocks; ++b)
      hopper::store_at(shared.next + sizeof(Word) * slot, value, shared.next_full + 8 * slot, b);
    hopper::barrier_expect(shared.next_full + 8 * slot, sizeof(Word));
  }
}

// rows: the left operand, or where its gathered rows go; columns: the right one; out; hidden: what backward of the
// activation reads, relu^2's result or SwiGLU's pre-activation, which forward writes. A pre-activation [R, 2N] is seen
// as two halves of N columns.
struct Maps {
  CUtensorMap rows, columns, out, hidden;
};

}  // namespace switchyard::kernels::grouped
