// The product kernel behind kernels/grouped_gemm.h. One block a multiprocessor works through tiles of 128 rows by 192
// or 256 columns: producer warpgroups, one or two, fill a ring of stages, 64 deep in K, two consumer warpgroups
// multiply 64 rows each out of them and finish the tile through shared memory. In a cluster of two blocks, which take
// neighbouring row tiles, each loads half of the matrix tile for both (or the other way round: Kind::kSharesRows),
// except where two experts meet: there each loads all of its own.
#pragma once

#include "kernels/grouped_epilogue.cuh"
#include "kernels/grouped_swiglu.cuh"
#include "kernels/grouped_tiles.cuh"
#include "kernels/wgmma.cuh"

namespace switchyard::kernels::grouped {

// load(i) for every kSharing-th of kCount boxes, from this block's first on.
template <int kCount, int kSharing, class Load>
__device__ __forceinline__ void load_share(int block, Load load) {
#pragma unroll
  for (int first = 0; first < kCount; first += kSharing) {
    const int i = first + (kSharing > 1 ? block : 0);
    if (first + kSharing <= kCount || i < kCount) load(i);
  }
}

// One stage's boxes of the right operand, by one thread: every kSharing-th, for as many blocks.
template <class K, int kSharing>
__device__ __forceinline__ void load_columns(const Maps& maps, const Tile& t, int depth, std::uint32_t to,
                                             std::uint32_t full, int block) {
  const int column = t.column_tile * K::kUnits;
  if constexpr (K::kGated) {  // the matrix as two of N rows an expert: gates, values
    load_share<2, kSharing>(block, [&](int half) {
      hopper::load_box<kSharing>(to + half * (K::kColumnBytes / 2), &maps.columns, full, depth, column,
                                 2 * t.expert + half);
    });
  } else if constexpr (K::kForm == Form::kForward) {
    constexpr int kShare = K::kColumns / K::kBlocks;
    load_share<K::kBlocks, kSharing>(block, [&](int share) {
      hopper::load_box<kSharing>(to + share * (K::kColumnBytes / K::kBlocks), &maps.columns, full, depth,
                                 column + share * kShare, t.expert);
    });
  } else {
    load_share<K::kPieces, kSharing>(block, [&](int piece) {
      hopper::load_box<kSharing>(to + piece * kBox, &maps.columns, full, column + piece * 64, depth,
                                 K::kForm == Form::kDgrad ? t.expert : 0);
    });
  }
}
// And of the left one.
template <class K>
__device__ __forceinline__ void load_rows(const Maps& maps, const Tile& t, int depth, std::uint32_t to,
                                          std::uint32_t full, int block) {
  if constexpr (K::kForm == Form::kWgrad) {
    constexpr int kSharing = K::kSharesRows ? K::kBlocks : 1;
    load_share<2, kSharing>(block, [&](int piece) {
      hopper::load_box<kSharing>(to + piece * kBox, &maps.rows, full, t.row + piece * 64, depth, 0);
    });
  } else {
    hopper::load_box<1>(to, &maps.rows, full, depth, t.row, 0);
  }
}
// Those of both that are not gathered.
template <class K>
__device__ __forceinline__ void load_stage(const Maps& maps, const Tile& t, int depth, std::uint32_t rows,
                                           std::uint32_t columns, std::uint32_t full, int block) {
  constexpr bool kRows = K::kGather != Gather::kRows, kColumns = K::kGather != Gather::kColumns;
  hopper::barrier_expect(full, (kRows ? kRowBytes : 0) + (kColumns ? K::kColumnBytes : 0));
  if constexpr (kColumns) {
    if (t.shares)
      load_columns<K, K::kBlocks>(maps, t, depth, columns, full, block);
    else
      load_columns<K, 1>(maps, t, depth, columns, full, block);
  }
  if constexpr (kRows) load_rows<K>(maps, t, depth, rows, full, block);
}

// And two boxes of each consumer warpgroup's hidden units, from the `first` on.
template <class K>
__device__ __forceinline__ void load_hidden(const Maps& maps, const Tile& t, int first, const Shared<K>& shared,
                                            int stage) {
  const std::uint32_t full = shared.full + 8 * stage;
  const int boxes = min(2, K::kHiddenBoxes - first);
  hopper::barrier_expect(full, 2 * boxes * kBox);
  for (int i = 0; i < boxes; ++i) {
    const int piece = (first + i) / K::kHalves, half = (first + i) % K::kHalves;
    for (int group = 0; group < 2; ++group)
      hopper::load_box<1>(shared.hidden(stage, i, group), &maps.hidden, full, t.column_tile * K::kColumns + piece * 64,
                          t.row + group * 64, half);
  }
}

// How a producer's threads copy an operand that is gathered: 16 bytes of every 16th row each; those rows share their
// place in the swizzle. (Boxes of one row by the copy engine take twice as long.)
template <class K>
struct Gathering {
  // Forward and dgrad gather a tile's rows once, wgrad those of a stage's depth.
  static constexpr bool kDepthwise = K::kForm == Form::kWgrad;
  static constexpr int kRows = (kDepthwise ? kDepth : kTileRows) / 16;
  static constexpr int kBoxes = K::kGather == Gather::kColumns ? K::kPieces : kDepthwise ? kTileRows / 64 : 1;
  const int chunk = threadIdx.x % 8, row = threadIdx.x % 128 / 8;
  int source[kRows];

  __device__ __forceinline__ void look_up(const Problem& p, int first_row) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) source[i] = p.row_index[first_row + row + 16 * i];
  }
  // Columns from `first` of the rows looked up. Instructions are what it costs: four warps issue all of a stage's.
  __device__ __forceinline__ void copy(const Problem& p, std::uint32_t to, int first) const {
    const int column = first + chunk * 8;
    to += ((chunk ^ (row & 7)) << 4) + row * 128;
    if (first + kBoxes * 64 <= p.gathered_width)
      copy(p, to, column, [](int) { return true; });
    else
      copy(p, to, column, [&](int box) { return column + box * 64 < p.gathered_width; });
  }

 private:
  template <class Inside>
  __device__ __forceinline__ void copy(const Problem& p, std::uint32_t to, int column, Inside inside) const {
    const unsigned stride = p.gathered_width * sizeof(bf16);
    const char* columns = reinterpret_cast<const char*>(p.gathered + column);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const char* from = columns + static_cast<std::uint64_t>(static_cast<unsigned>(max(source[i], 0))) * stride;
#pragma unroll
      for (int box = 0; box < kBoxes; ++box)
        hopper::copy_16(to + box * kBox + i * 2048, from + box * 128, inside(box) ? source[i] : -1);
    }
  }
};

// Tiles of one length would all end at a time, and what they add would meet in the cache. Where every cluster has many,
// they start an eighth of a mean tile apart: a step of 64 takes the tensor cores 4 clocks a column.
template <class K>
__device__ __forceinline__ void stagger(const Problem& p, const Extent& extent, int clusters, int first) {
  constexpr int kMany = 32;
  if (extent.tiles < kMany * clusters) return;
  const int rows = p.offset ? p.offset[p.experts] : static_cast<int>(p.row_capacity);
  const long long start = clock64(), eighth = rows / p.experts / kDepth * (4 * K::kColumns / 8);
  while (clock64() - start < first % 8 * eighth) __nanosleep(100);
}

template <class K>
__device__ __forceinline__ void produce(const Maps& maps, const Problem& p, const Shared<K>& shared, int clusters,
                                        int first, const Extent& extent, int block) {
  const int t = threadIdx.x % 128, producer = threadIdx.x / 128;
  const bool leads = threadIdx.x == 0;
  Ring<K::kStages> ring(1, producer);
  Gathering<K> gathering;
  if constexpr (K::kForm == Form::kWgrad) stagger<K>(p, extent, clusters, first);
  int own = producer;  // the first of the tile's steps that is this warpgroup's; turns go on across tiles
  for (int index = first, n = 0; index < extent.tiles; ++n) {
    const Tile tile = tile_at<K>(p, extent, index, block);
    int drawn = 0;
    const int turns = (tile.steps - own + K::kProducers - 1) / K::kProducers, last = max(0, turns - 1);
    // Late, so that who is free first gets the next tile; early enough to hide the way to memory.
    const int draw_at = max(0, turns - 8 / K::kProducers);
    const int first_column = K::kGather == Gather::kColumns ? tile.column_tile * K::kColumns : tile.row;
    if constexpr (K::kGathers)
      if (turns > 0) gathering.look_up(p, Gathering<K>::kDepthwise ? (tile.first_step + own) * kDepth : tile.row);
    for (int turn = 0; turn <= last; ++turn) {
      if (K::kDraws && turn == draw_at && block == 0 && leads) drawn = draw_tile(p.scheduler);
      if (K::kDraws && turn == last && leads) publish_tile<K>(shared, n, drawn + clusters, block);
      if (K::kForm == Form::kWgrad && turns == 0) break;
      const int depth = (tile.first_step + own + turn * K::kProducers) * kDepth;
      const std::uint32_t full = shared.full + 8 * ring.stage, rows = shared.rows + ring.stage * kRowBytes;
      const std::uint32_t columns = shared.columns + ring.stage * K::kColumnBytes;
      hopper::barrier_wait(shared.empty + 8 * ring.stage, ring.parity);
      if (!K::kGathers || t == 0) load_stage<K>(maps, tile, depth, rows, columns, full, block);
      if constexpr (K::kGathers) {
        gathering.copy(p, K::kGather == Gather::kColumns ? columns : rows,
                       Gathering<K>::kDepthwise ? first_column : depth);
        hopper::copies_arrive(full);
        if (Gathering<K>::kDepthwise && turn < last) gathering.look_up(p, depth + K::kProducers * kDepth);
      }
      ring.advance(K::kProducers);
    }
    own += turns * K::kProducers - tile.steps;
    for (int box = 0; box < K::kHiddenBoxes; box += 2, ring.advance()) {
      hopper::barrier_wait(shared.empty + 8 * ring.stage, ring.parity);
      if (!K::kGathers || t == 0) load_hidden<K>(maps, tile, box, shared, ring.stage);
      if (K::kGathers) hopper::copies_arrive(shared.full + 8 * ring.stage);
    }
    index = K::kDraws ? next_tile<K>(shared, n, K::kGathers) : index + clusters;
  }
  if (K::kDraws && block == 0 && leads) leave_scheduler(p.scheduler, clusters);
  if (K::kGathers) hopper::wait_copies();
}

// Whether it is this tile that lets its gathered rows go out: one of those that read them, which one by turns, since a
// block often has tiles of the same columns alone.
template <class K>
__device__ __forceinline__ bool sends_rows(const Problem& p, const Tile& tile) {
  return K::kForm != Form::kWgrad && K::kGathers && p.keep_rows &&
         tile.column_tile == p.column_tiles.remainder(tile.row / (kTileRows * K::kBlocks));
}

// The products of a tile. Gathered rows that are wanted go out of the stages on the way.
template <class K>
__device__ __forceinline__ void multiply_tile(float (&d)[K::kColumns / 2], const Maps& maps, const Problem& p,
                                              const Tile& tile, const Shared<K>& shared, Ring<K::kStages>& ring,
                                              int group, int block) {
  constexpr bool kRowsMn = K::kForm == Form::kWgrad, kColumnsMn = K::kForm != Form::kForward;
  // By the thread that then releases this block's stages.
  const bool sends = threadIdx.x % 128 == (K::kBlocks > 1 ? block : 0) && sends_rows<K>(p, tile);
  const auto done_with = [&](int stage, bool last) {
    if (sends) {
      if (last)
        hopper::wait_stores_read<0>();
      else
        hopper::wait_stores_read<1>();
    }
    release<K>(shared, stage);
  };
  int previous = 0;
  for (int step = 0; step < tile.steps; ++step) {
    hopper::barrier_wait(shared.full + 8 * ring.stage, ring.parity);
    if (K::kGathers) hopper::async_proxy_fence();
    const std::uint32_t rows = shared.rows + ring.stage * kRowBytes + group * (kRowBytes / 2);
    const std::uint32_t columns = shared.columns + ring.stage * K::kColumnBytes;
    if (sends) hopper::store_box(&maps.rows, rows, step * kDepth, tile.row + group * 64, 0);
    const std::uint64_t a = kRowsMn ? hopper::operand_mn_major(rows) : hopper::operand_k_major(rows);
    const std::uint64_t b = kColumnsMn ? hopper::operand_mn_major(columns) : hopper::operand_k_major(columns);
    hopper::products_begin();
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k)
      hopper::multiply<kRowsMn, kColumnsMn>(d, a + k * (kRowsMn ? 128 : 2), b + k * (kColumnsMn ? 128 : 2),
                                            (step | k) != 0);
    hopper::products_commit();
    if (step > 0) {
      hopper::products_wait<1>();
      done_with(previous, false);
    }
    previous = ring.stage;
    ring.advance();
  }
  hopper::products_wait<0>();
  if (tile.steps > 0) done_with(previous, true);
    // The sums are in their registers only now.
#pragma unroll
  for (int i = 0; i < K::kColumns / 2; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <class K>
__device__ __forceinline__ void consume(const Maps& maps, const Problem& p, const Shared<K>& shared, int clusters,
                                        int first, const Extent& extent, int block) {
  Place place(threadIdx.x / 128 - K::kProducers, shared.pieces, K::kBuffers);
  Ring<K::kStages> ring(0);
  float d[K::kColumns / 2];
  RowWeights coming = row_weights<K>(p, place, extent, first, block);
  for (int index = first, n = 0; index < extent.tiles; ++n) {
    const Tile tile = tile_at<K>(p, extent, index, block);
    const bool has_products = K::kForm != Form::kWgrad || tile.steps > 0;
    if (has_products) multiply_tile<K>(d, maps, p, tile, shared, ring, place.group, block);
    index = K::kDraws ? next_tile<K>(shared, n, true) : index + clusters;
    if (has_products) {
      // A tile ahead, for they are 700 clocks away, and a fence of the next products would wait for them.
      const RowWeights weight = coming.never_zero();
      coming = row_weights<K>(p, place, extent, index, block);
      if constexpr (K::kEpilogue == Epilogue::kAdd) {
        finish_add<K>(d, maps, tile, place);
      } else if constexpr (K::kEpilogue == Epilogue::kRelu2Backward) {
        finish_relu2_backward<K>(d, maps, p, weight, tile, shared, ring, place);
      } else if constexpr (K::kEpilogue == Epilogue::kSwiglu) {
        finish_swiglu<K>(d, maps, p, weight, tile, place);
      } else if constexpr (K::kEpilogue == Epilogue::kSwigluBackward) {
        finish_swiglu_backward<K>(d, maps, p, weight, tile, shared, ring, place);
      } else {
        finish_store<K>(d, maps, weight, tile, place);
      }
    }
  }
  if (threadIdx.x % 128 < K::kBlocks) hopper::wait_stores_complete();  // the one that leads, and who sends rows
}

template <class K>
__global__ void __launch_bounds__(K::kThreads, 1) grouped_product(const __grid_constant__ Maps maps, const Problem p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char raw[];
  const Shared<K> shared(raw);
  const int block = K::kBlocks > 1 ? hopper::block_in_cluster() : 0;
  if (threadIdx.x == 0) shared.init();
  if (K::kBlocks > 1)
    hopper::cluster_sync();
  else
    __syncthreads();
  const int clusters = gridDim.x / K::kBlocks, first = blockIdx.x / K::kBlocks;
  const Extent extent = extent_of<K>(p);
  if (threadIdx.x < 128 * K::kProducers) {
    hopper::give_up_registers<K::kProducerRegisters>();
    if (K::kGathers || threadIdx.x == 0) produce<K>(maps, p, shared, clusters, first, extent, block);
    __syncwarp();
  } else {
    hopper::take_registers<K::kConsumerRegisters>();
    consume<K>(maps, p, shared, clusters, first, extent, block);
    __syncwarp();
  }
  if (K::kBlocks > 1) hopper::cluster_sync();  // a block must not end while others write into its shared memory
#endif
}

}  // namespace switchyard::kernels::grouped
