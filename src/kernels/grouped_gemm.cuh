// The product kernel behind kernels/grouped_gemm.h. One block a multiprocessor works through tiles of 128 rows by 192
// or 256 columns: a producer warpgroup fills a ring of stages, 64 deep in K, two consumer warpgroups multiply 64 rows
// each out of them and finish the tile through shared memory. In a cluster of two blocks, which take neighbouring row
// tiles, each loads half of the matrix tile for both.
#pragma once

#include "kernels/grouped_epilogue.cuh"
#include "kernels/grouped_swiglu.cuh"
#include "kernels/grouped_tiles.cuh"
#include "kernels/wgmma.cuh"

namespace switchyard::kernels::grouped {

// One stage's boxes, by one thread.
template <class K>
__device__ __forceinline__ void load_stage(const Maps& maps, const Tile& t, int depth, std::uint32_t rows,
                                           std::uint32_t columns, std::uint32_t full, int block) {
  hopper::barrier_expect(full, (K::kGather ? 0 : kRowBytes) + K::kColumnBytes);
  const int column = t.column_tile * K::kUnits;
  if constexpr (K::kGated) {  // the matrix as two of N rows an expert: gates, values
    for (int half = block; half < 2; half += K::kBlocks)
      hopper::load_box<K::kBlocks>(columns + half * (K::kColumnBytes / 2), &maps.columns, full, depth, column,
                                   2 * t.expert + half);
  } else if constexpr (K::kForm == Form::kForward) {
    constexpr int kShare = K::kColumns / K::kBlocks;
    hopper::load_box<K::kBlocks>(columns + block * (K::kColumnBytes / K::kBlocks), &maps.columns, full, depth,
                                 column + block * kShare, t.expert);
  } else {
    for (int piece = block; piece < K::kPieces; piece += K::kBlocks)
      hopper::load_box<K::kBlocks>(columns + piece * kBox, &maps.columns, full, column + piece * 64, depth,
                                   K::kForm == Form::kDgrad ? t.expert : 0);
  }
  if constexpr (K::kForm == Form::kWgrad) {
    hopper::load_box<1>(rows, &maps.rows, full, t.row, depth, 0);
    hopper::load_box<1>(rows + kBox, &maps.rows, full, t.row + 64, depth, 0);
  } else if constexpr (!K::kGather) {
    hopper::load_box<1>(rows, &maps.rows, full, depth, t.row, 0);
  }
}

template <class K>
__device__ __forceinline__ void produce(const Maps& maps, const Problem& p, const Shared<K>& shared, int clusters,
                                        int first, int total, int block) {
  const int t = threadIdx.x % 128;
  Ring<K::kStages> ring(1);
  // Gathering, a thread copies 16 bytes of every 16th row; those rows share their place in the swizzle.
  const int chunk = t % 8, row = t / 8;
  for (int index = first, n = 0; index < total; ++n) {
    const Tile tile = tile_at<K>(p, index, block);
    int source[8], drawn = 0;
    // Late, so that who is free first gets the longest tile that is left; early enough to hide the way to memory.
    const int draw_at = max(0, tile.steps - 8);
    const auto draw = [&] {
      if (K::kDynamic && block == 0) drawn = atomicAdd(p.scheduler, 1) + clusters;
    };
    if (tile.steps == 0) draw();
    if constexpr (K::kGather) {
#pragma unroll
      for (int i = 0; i < 8; ++i) source[i] = p.row_index[tile.row + row + 16 * i];
    }
    for (int step = 0; step < tile.steps; ++step) {
      const int depth = (tile.first_step + step) * kDepth;
      const std::uint32_t full = shared.full + 8 * ring.stage, rows = shared.rows + ring.stage * kRowBytes;
      if (step == draw_at) draw();
      hopper::barrier_wait(shared.empty + 8 * ring.stage, ring.parity);
      if (!K::kGather || t == 0)
        load_stage<K>(maps, tile, depth, rows, shared.columns + ring.stage * K::kColumnBytes, full, block);
      if constexpr (K::kGather) {
        const int at = depth + chunk * 8;
        const std::uint32_t to = rows + ((chunk ^ (row & 7)) << 4) + row * 128;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const bool there = source[i] >= 0 && at < p.inner;
          hopper::copy_16(to + i * 2048, there ? p.rows + static_cast<std::int64_t>(source[i]) * p.inner + at : p.rows,
                          there);
        }
        hopper::copies_arrive(full);
      }
      ring.advance();
    }
    if (K::kDynamic) publish_tile<K>(shared, n, drawn, block);
    index = next_tile<K>(shared, index, clusters, n, false);
  }
  // The last cluster to finish leaves the scheduler as it found it.
  if (K::kDynamic && block == 0 &&
      atomicInc(reinterpret_cast<unsigned*>(p.scheduler) + 1, clusters - 1) == clusters - 1)
    *static_cast<volatile int*>(p.scheduler) = 0;
  if (K::kGather) hopper::wait_copies();
}

// The products of a tile; `between` runs once while they do. Gathered rows that are wanted go out of the stages on the
// way, once: by the tiles of the first columns.
template <class K, class Between>
__device__ __forceinline__ void multiply_tile(float (&d)[K::kColumns / 2], const Maps& maps, const Problem& p,
                                              const Tile& tile, const Shared<K>& shared, Ring<K::kStages>& ring,
                                              int group, int block, Between between) {
  constexpr bool kRowsMn = K::kForm == Form::kWgrad, kColumnsMn = K::kForm != Form::kForward;
  const int t = threadIdx.x % 128;
  // By the thread that tells this block's producer when a stage is free.
  const bool sends = K::kGather && p.keep_rows && tile.column_tile == 0 && t == (K::kBlocks > 1 ? block : 0);
  const auto release = [&](int stage, bool last) {
    if (sends) {
      if (last)
        hopper::wait_stores_read<0>();
      else
        hopper::wait_stores_read<1>();
    }
    if (K::kBlocks == 1) {
      if (t == 0) hopper::barrier_arrive(shared.empty + 8 * stage);
    } else if (t < K::kBlocks) {
      hopper::barrier_arrive_at(shared.empty + 8 * stage, t);
    }
  };
  int previous = 0;
  for (int step = 0; step < tile.steps; ++step) {
    hopper::barrier_wait(shared.full + 8 * ring.stage, ring.parity);
    if (K::kGather) hopper::async_proxy_fence();
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
      release(previous, false);
    }
    if (step == min(2, tile.steps - 1)) between();
    previous = ring.stage;
    ring.advance();
  }
  hopper::products_wait<0>();
  if (tile.steps > 0) release(previous, true);
    // The sums are in their registers only now.
#pragma unroll
  for (int i = 0; i < K::kColumns / 2; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <class K>
__device__ __forceinline__ void consume(const Maps& maps, const Problem& p, const Shared<K>& shared, int clusters,
                                        int first, int total, int block) {
  Place place(threadIdx.x / 128 - 1, shared.pieces, K::kBuffers);
  const std::uint32_t loaded = shared.loaded + 8 * place.group;
  Ring<K::kStages> ring(0);
  float d[K::kColumns / 2];
  RowWeights coming = row_weights<K>(p, place, first, total, block);
  for (int index = first, n = 0; index < total; ++n) {
    const Tile tile = tile_at<K>(p, index, block);
    if (K::kForm != Form::kWgrad || tile.steps > 0) {
      multiply_tile<K>(d, maps, p, tile, shared, ring, place.group, block, [&] {
        if constexpr (K::kLoadsHidden) load_hidden<K>(maps, tile, place, loaded);
      });
      // A tile ahead, for they are 700 clocks away, and a fence of the next products would wait for them.
      const RowWeights weight = coming.never_zero();
      coming = row_weights<K>(p, place, index + clusters, total, block);
      if constexpr (K::kLoadsHidden) hopper::barrier_wait(loaded, n & 1);
      if constexpr (K::kEpilogue == Epilogue::kAdd) {
        finish_add<K>(d, maps, tile, place);
      } else if constexpr (K::kEpilogue == Epilogue::kRelu2Backward) {
        finish_relu2_backward<K>(d, maps, p, weight, tile, place);
      } else if constexpr (K::kEpilogue == Epilogue::kSwiglu) {
        finish_swiglu<K>(d, maps, p, weight, tile, place);
      } else if constexpr (K::kEpilogue == Epilogue::kSwigluBackward) {
        finish_swiglu_backward<K>(d, maps, p, weight, tile, place);
      } else {
        finish_store<K>(d, maps, weight, tile, place);
      }
    }
    index = next_tile<K>(shared, index, clusters, n, true);
  }
  if (threadIdx.x % 128 < K::kBlocks) hopper::wait_stores_complete();  // the one that leads, and who sends rows
}

template <class K>
__global__ void __launch_bounds__(kThreads, 1) grouped_product(const __grid_constant__ Maps maps, const Problem p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char raw[];
  const Shared<K> shared(raw);
  const int block = K::kBlocks > 1 ? hopper::block_in_cluster() : 0;
  if (threadIdx.x == 0) shared.init();
  if (K::kBlocks > 1)
    hopper::cluster_sync();
  else
    __syncthreads();
  const int clusters = gridDim.x / K::kBlocks, first = blockIdx.x / K::kBlocks, total = tile_count<K>(p);
  if (threadIdx.x < 128) {
    hopper::give_up_registers<K::kGather ? 56 : 40>();
    if (K::kGather || threadIdx.x == 0) produce<K>(maps, p, shared, clusters, first, total, block);
    __syncwarp();
  } else {
    hopper::take_registers<K::kGather ? 224 : 232>();
    consume<K>(maps, p, shared, clusters, first, total, block);
    __syncwarp();
  }
  if (K::kBlocks > 1) hopper::cluster_sync();  // a block must not end while others write into its shared memory
#endif
}

}  // namespace switchyard::kernels::grouped
