// The product kernel behind kernels/grouped_gemm.h. One block a multiprocessor works through tiles of 128 rows by 192
// or 256 columns: a producer warpgroup fills a ring of stages, 64 deep in K, two consumer warpgroups multiply 64 rows
// each out of them and finish the tile through shared memory. In a cluster of two blocks, which take neighbouring row
// tiles, each loads half of the matrix tile for both.
#pragma once

#include "kernels/hopper.cuh"
#include "kernels/vector.cuh"
#include "kernels/wgmma.cuh"

namespace switchyard::kernels::grouped {

enum class Form { kForward, kDgrad, kWgrad };  // rows W^T, rows W, a^T b
enum class Epilogue { kStore, kRelu2, kRelu2Backward, kAdd };

constexpr int kTileRows = 128, kDepth = 64;        // depth: of K, a stage
constexpr int kRowBytes = kTileRows * kDepth * 2;  // the left operand of a stage
constexpr int kBox = 64 * 64 * 2;                  // bytes of a finished piece: 64 rows of 64 bf16 or 32 floats
constexpr int kThreads = 384;

template <Form F, bool Gather, int Blocks, Epilogue E, int Columns>
struct Kind {
  static constexpr Form kForm = F;
  static constexpr Epilogue kEpilogue = E;
  static constexpr bool kGather = Gather;  // the left operand comes row by row through an index
  static constexpr int kBlocks = Blocks;   // of a cluster
  static constexpr int kColumns = Columns;
  static constexpr int kPieces = Columns / 64;
  static constexpr int kColumnBytes = Columns * kDepth * 2;
  // relu^2 backward holds all of the tile's activations at once, loaded while the products run.
  static constexpr int kBuffers = E == Epilogue::kRelu2Backward ? kPieces : 2;  // a consumer warpgroup
  static constexpr int kStages = E == Epilogue::kRelu2Backward && Columns == 256 ? 3 : 4;
  static constexpr int kShared = kStages * (kRowBytes + kColumnBytes) + 2 * kBuffers * kBox + 1024 + 256;
  static constexpr bool kDynamic = F == Form::kWgrad;  // tiles of unequal length are handed out as blocks get free
};

struct Problem {
  const bf16* rows;
  const int* row_index;
  const int *offset, *count, *tile_expert, *longest_first;
  int* scheduler;
  const float* row_weight;
  float* dot;
  std::int64_t row_capacity;
  int experts, row_tiles, column_tiles, depth_steps, inner;  // row_tiles: of one expert's gradient (wgrad)
};

struct Tile {
  int row, column_tile, expert, first_step, steps;
};

template <class K>
__device__ __forceinline__ int tile_count(const Problem& p) {
  if (K::kForm == Form::kWgrad) return p.experts * p.row_tiles * p.column_tiles;
  const int rows = p.offset ? p.offset[p.experts] : static_cast<int>(p.row_capacity);
  return rows / (kTileRows * K::kBlocks) * p.column_tiles;
}

template <class K>
__device__ __forceinline__ Tile tile_at(const Problem& p, int index, int block) {
  Tile t;
  if constexpr (K::kForm == Form::kWgrad) {
    const int per = p.row_tiles * p.column_tiles, place = index / per, r = index - place * per;
    const int row_tile = r / p.column_tiles;
    t.column_tile = r - row_tile * p.column_tiles;
    t.row = (row_tile * K::kBlocks + block) * kTileRows;
    t.expert = p.longest_first ? p.longest_first[place] : place;
    t.first_step = p.offset ? p.offset[t.expert] / kDepth : 0;
    const int rows = p.count ? p.count[t.expert] : static_cast<int>(p.row_capacity);
    t.steps = (rows + kDepth - 1) / kDepth;
  } else {
    const int row_tile = index / p.column_tiles;
    t.column_tile = index - row_tile * p.column_tiles;
    t.row = (row_tile * K::kBlocks + block) * kTileRows;
    t.expert = p.tile_expert ? p.tile_expert[row_tile] : 0;
    t.first_step = 0;
    t.steps = p.depth_steps;
  }
  return t;
}

// Where a block keeps what, as addresses in shared memory.
template <class K>
struct Shared {
  std::uint32_t rows, columns, pieces, full, empty, loaded, next_full, next_empty, next;
  __device__ explicit Shared(const void* raw) {
    rows = (hopper::smem_address(raw) + 1023) & ~1023u;
    columns = rows + K::kStages * kRowBytes;
    pieces = columns + K::kStages * K::kColumnBytes;
    full = pieces + 2 * K::kBuffers * kBox;
    empty = full + 8 * K::kStages;
    loaded = empty + 8 * K::kStages;  // [2] the consumers' activations
    next_full = loaded + 16;          // [2] the ring of two that hands out tiles
    next_empty = next_full + 16;
    next = next_empty + 16;
  }
  __device__ void init() const {
    for (int i = 0; i < K::kStages; ++i) {
      hopper::barrier_init(full + 8 * i, K::kGather ? 129 : 1);
      hopper::barrier_init(empty + 8 * i, 2 * K::kBlocks);
    }
    for (int i = 0; i < 2; ++i) {
      hopper::barrier_init(loaded + 8 * i, 1);
      hopper::barrier_init(next_full + 8 * i, 1);
      hopper::barrier_init(next_empty + 8 * i, K::kBlocks * (8 + 1));  // consumer warps and producer of every block
    }
    hopper::barrier_init_fence();
  }
};

// A ring position: stage and the parity of its phase.
template <int kStages>
struct Ring {
  int stage = 0;
  std::uint32_t parity;
  __device__ explicit Ring(std::uint32_t first) : parity(first) {}
  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// The tile after the n-th. Static: a fixed stride. Dynamic: block 0's producer draws it and publishes it to the
// cluster.
template <class K>
__device__ __forceinline__ int next_tile(const Shared<K>& shared, int index, int clusters, int n, bool whole_warp) {
  if constexpr (!K::kDynamic) return index + clusters;
  const int slot = n & 1;
  hopper::barrier_wait(shared.next_full + 8 * slot, (n >> 1) & 1);
  const int value = hopper::load_word(shared.next + 4 * slot);
  if (whole_warp) __syncwarp();
  if (!whole_warp || threadIdx.x % kWarp == 0) {
    if (K::kBlocks == 1)
      hopper::barrier_arrive(shared.next_empty + 8 * slot);
    else
      hopper::barrier_arrive_at(shared.next_empty + 8 * slot, 0);
  }
  return value;
}

template <class K>
__device__ __forceinline__ void publish_tile(const Shared<K>& shared, int n, int value, int block) {
  const int slot = n & 1;
  if (block == 0) {
    hopper::barrier_wait(shared.next_empty + 8 * slot, ((n >> 1) & 1) ^ 1);
#pragma unroll
    for (int b = 0; b < K::kBlocks; ++b)
      hopper::store_at(shared.next + 4 * slot, value, shared.next_full + 8 * slot, b);
  }
  hopper::barrier_expect(shared.next_full + 8 * slot, 4);
}

struct Maps {  // rows: the left operand; columns: the right one; out; active: relu^2's, for backward
  CUtensorMap rows, columns, out, active;
};

// One stage's boxes, by one thread.
template <class K>
__device__ __forceinline__ void load_stage(const Maps& maps, const Tile& t, int depth, std::uint32_t rows,
                                           std::uint32_t columns, std::uint32_t full, int block) {
  hopper::barrier_expect(full, (K::kGather ? 0 : kRowBytes) + K::kColumnBytes);
  const int column = t.column_tile * K::kColumns;
  if constexpr (K::kForm == Form::kForward) {
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

// The products of a tile; `between` runs once while they do.
template <class K, class Between>
__device__ __forceinline__ void multiply_tile(float (&d)[K::kColumns / 2], const Tile& tile, const Shared<K>& shared,
                                              Ring<K::kStages>& ring, int group, Between between) {
  constexpr bool kRowsMn = K::kForm == Form::kWgrad, kColumnsMn = K::kForm != Form::kForward;
  const int t = threadIdx.x % 128;
  const auto release = [&](int stage) {
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
      release(previous);
    }
    if (step == min(2, tile.steps - 1)) between();
    previous = ring.stage;
    ring.advance();
  }
  hopper::products_wait<0>();
  if (tile.steps > 0) release(previous);
    // The sums are in their registers only now.
#pragma unroll
  for (int i = 0; i < K::kColumns / 2; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

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
  // Columns 16 q.. of a piece of 64 bf16.
  __device__ std::uint32_t matrices(std::uint32_t piece, int q) const {
    return piece + piece_row * 128 + (((q * 2 + lane / 16) ^ (piece_row & 7)) << 4);
  }
  __device__ bool leads() const { return threadIdx.x % 128 == 0; }
  __device__ void sync() const { hopper::warpgroup_sync(1 + group); }
};

// A finished piece goes out: all its writes, then one thread's copy.
template <class Store>
__device__ __forceinline__ void send_piece(const Place& place, Store store) {
  hopper::async_proxy_fence();
  place.sync();
  if (place.leads()) store();
}

template <class K>
__device__ __forceinline__ void finish_store(float (&d)[K::kColumns / 2], const Maps& maps, const Tile& tile,
                                             Place& place) {
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
          low *= low, high *= high;
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

__device__ __forceinline__ float approximate_sqrt(float x) {  // 2 ulp; the exact one takes as long as the products
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The tile's activations, in pieces, into the buffers that the result will leave from.
template <class K>
__device__ __forceinline__ void load_active(const Maps& maps, const Tile& tile, const Place& place,
                                            std::uint32_t loaded) {
  if (!place.leads()) return;
  hopper::wait_stores_read<0>();
  hopper::barrier_expect(loaded, K::kPieces * kBox);
#pragma unroll
  for (int piece = 0; piece < K::kPieces; ++piece)
    hopper::load_box<1>(place.buffer(piece), &maps.active, loaded, tile.column_tile * K::kColumns + piece * 64,
                        tile.row + place.group * 64, 0);
}

template <class K>
__device__ __forceinline__ void finish_relu2_backward(float (&d)[K::kColumns / 2], const Maps& maps, const Problem& p,
                                                      const Tile& tile, const Place& place) {
  const int row = tile.row + place.row;
  float factor[2], dots[2][2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) factor[i] = 2 * (p.row_weight ? p.row_weight[row + 8 * i] : 1.0f);
#pragma unroll
  for (int piece = 0; piece < K::kPieces; ++piece) {
    // All of a piece's loads before its first use: two warps a scheduler hide little latency.
    std::uint32_t r[4][4];
#pragma unroll
    for (int q = 0; q < 4; ++q) hopper::load_matrices(place.matrices(place.buffer(piece), q), r[q]);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // i % 2: which of the two rows
        const int first = (8 * piece + 2 * q) * 4 + 2 * i;
        float low, high;
        unpack_two(r[q][i], low, high);
        dots[i % 2][0] = fmaf(d[first], low, dots[i % 2][0]);
        dots[i % 2][1] = fmaf(d[first + 1], high, dots[i % 2][1]);
        r[q][i] = pack_two(factor[i % 2] * approximate_sqrt(low) * d[first],
                           factor[i % 2] * approximate_sqrt(high) * d[first + 1]);
      }
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) hopper::store_matrices(place.matrices(place.buffer(piece), q), r[q]);
    send_piece(place, [&] {
      hopper::store_box(&maps.out, place.buffer(piece), tile.column_tile * K::kColumns + piece * 64,
                        tile.row + place.group * 64, 0);
    });
  }
  if (!p.dot) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float dot = lane_sum<4>(dots[i][0] + dots[i][1]);
    if (place.lane % 4 == 0) p.dot[tile.column_tile * p.row_capacity + row + 8 * i] = dot;
  }
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

template <class K>
__device__ __forceinline__ void consume(const Maps& maps, const Problem& p, const Shared<K>& shared, int clusters,
                                        int first, int total, int block) {
  Place place(threadIdx.x / 128 - 1, shared.pieces, K::kBuffers);
  const std::uint32_t loaded = shared.loaded + 8 * place.group;
  Ring<K::kStages> ring(0);
  float d[K::kColumns / 2];
  for (int index = first, n = 0; index < total; ++n) {
    const Tile tile = tile_at<K>(p, index, block);
    if (K::kForm != Form::kWgrad || tile.steps > 0) {
      multiply_tile<K>(d, tile, shared, ring, place.group, [&] {
        if constexpr (K::kEpilogue == Epilogue::kRelu2Backward) load_active<K>(maps, tile, place, loaded);
      });
      if constexpr (K::kEpilogue == Epilogue::kAdd) {
        finish_add<K>(d, maps, tile, place);
      } else if constexpr (K::kEpilogue == Epilogue::kRelu2Backward) {
        hopper::barrier_wait(loaded, n & 1);
        finish_relu2_backward<K>(d, maps, p, tile, place);
      } else {
        finish_store<K>(d, maps, tile, place);
      }
    }
    index = next_tile<K>(shared, index, clusters, n, true);
  }
  if (place.leads()) hopper::wait_stores_complete();
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
