// One launch computes all products of a chain: clusters draw tiles in order, a few matrices' of one product, then the
// same matrices' of the next. A tile waits until the product before has finished its matrix: a count of finished parts
// a matrix says so. Who waits, waits for tiles drawn earlier, by clusters that run.
//
// A cluster of two blocks computes tiles of 256 x 256, each block 128 rows: as in kernels/grouped_gemm.cuh one thread
// fills a ring of stages and two warpgroups multiply 64 rows each; each block loads half of B for both. Two more
// threads send the results off and count them, so that nobody who multiplies waits for memory. Smaller tiles would ask
// more of L2 than it gives (128 x 128: 64 bytes a clock and multiprocessor of about 30).
//
// Of a symmetric matrix tiles above the diagonal are neither computed nor stored: who reads them takes those below,
// turned. On the diagonal, 64 rows need 64, 128, 192 or 256 columns, and the squares above are mirrored from those
// below; one block takes the outer rows, the other the inner ones, and both have the same work. 768 x 768 costs 54% of
// the whole product, and two thirds of the memory.
#include <algorithm>
#include <tuple>
#include <vector>

#include "kernels/chain_update.cuh"
#include "kernels/cuda_check.h"
#include "kernels/device_limits.h"
#include "kernels/tensor_map.h"
#include "kernels/wgmma_half.cuh"

namespace switchyard::kernels {
namespace chain {

// ---- the producer ----

// C passes through the ring behind the operands: two stages of two pieces for each warpgroup.
__device__ __forceinline__ void load_terms(const CUtensorMap& map, const Tile& tile, const Part (&parts)[2],
                                           const Shared& shared, Ring& ring) {
  for (int first = 0; first < kPieces; first += 2, ring.advance()) {
    hopper::barrier_wait(shared.empty + 8 * ring.stage, ring.parity);
    const std::uint32_t full = shared.full + 8 * ring.stage, to = shared.columns + ring.stage * Kind::kColumnBytes;
    const auto boxes = [&](int group) { return max(0, min(2, parts[group].pieces - first)); };
    hopper::barrier_expect(full, (boxes(0) + boxes(1)) * kBox);
    for (int group = 0; group < 2; ++group)
      for (int i = 0; i < boxes(group); ++i)
        hopper::load_box<1>(to + (2 * group + i) * kBox, &map, full, tile.n + (first + i) * kPiece, parts[group].row,
                            tile.matrix);
  }
}

// draw(): called once, early enough to hide the way to memory before the tile's last load.
template <class Draw>
__device__ __forceinline__ void load_operands(const Maps& maps, const Step& step, const Tile& tile,
                                              const Part (&parts)[2], const Shared& shared, Ring& ring, int block,
                                              Draw draw) {
  const Turns turns(step, tile);
  const bool rows_too = !rows_are_columns(step, tile);
  const int column = tile.n + block * (kTile / 2), draw_at = max(0, step.depth - 8);
  for (int i = 0; i < step.depth; ++i, ring.advance()) {
    if (i == draw_at) draw();
    hopper::barrier_wait(shared.empty + 8 * ring.stage, ring.parity);
    const std::uint32_t full = shared.full + 8 * ring.stage, rows = shared.rows + ring.stage * kRowBytes;
    const std::uint32_t columns = shared.columns + ring.stage * Kind::kColumnBytes + block * (Kind::kColumnBytes / 2);
    const int k = i * kDepth;
    hopper::barrier_expect(full, (rows_too ? kRowBytes : 0) + Kind::kColumnBytes);
    if (i < turns.b) {
      hopper::load_box<2>(columns, &maps.of[step.b_rows], full, k, column, tile.matrix);
    } else {
      hopper::load_box<2>(columns, &maps.of[step.b_squares], full, column, k, tile.matrix);
      hopper::load_box<2>(columns + kBox, &maps.of[step.b_squares], full, column + kPiece, k, tile.matrix);
    }
    if (!rows_too) continue;
    const bool across = i >= turns.a;
    for (int group = 0; group < 2; ++group)
      hopper::load_box<1>(rows + group * kBox, &maps.of[step.a], full, across ? parts[group].row : k,
                          across ? k : parts[group].row, tile.matrix);
  }
}

// Until the products before the tile's have finished its matrix, and copies see what they wrote.
__device__ __forceinline__ void await_matrix(const Shape& shape, const Tile& tile) {
  const int parts = kParts * shape.step[tile.step].tiles_before;
  while (hopper::load_acquire(shape.finished + tile.matrix) < parts) __nanosleep(50);
  hopper::async_proxy_fence_all();
}

__device__ __forceinline__ Tile next_tile(const Shared& shared, int n, bool whole_warp) {
  return Tile(grouped::next_tile<Kind, int4>(shared, n, whole_warp));
}

__device__ __forceinline__ void produce(const Maps& maps, const Shape& shape, const Shared& shared, int block) {
  Ring ring(1);
  int drawn = 0;
  const auto draw = [&] {
    if (block == 0) drawn = grouped::draw_tile(shape.scheduler);
  };
  draw();
  for (int n = 0;; ++n) {
    grouped::publish_tile<Kind>(shared, n, block == 0 ? tile_at(shape, drawn) : int4{}, block);
    const Tile tile = next_tile(shared, n, false);
    if (tile.none()) return;
    const Step& step = shape.step[tile.step];
    const Part parts[2] = {part_of(step, tile, block, 0), part_of(step, tile, block, 1)};
    await_matrix(shape, tile);
    load_operands(maps, step, tile, parts, shared, ring, block, draw);
    if (step.c >= 0) load_terms(maps.of[step.c], tile, parts, shared, ring);
  }
}

// ---- who sends a consumer warpgroup's results ----

__device__ __forceinline__ void send(const Maps& maps, const Shape& shape, const Shared& shared, int block, int group) {
  Buffer buffer(shared, group, 0);
  for (int n = 0;; ++n) {
    const Tile tile = next_tile(shared, n, false);
    if (tile.none()) return;
    const Step& step = shape.step[tile.step];
    const Part part = part_of(step, tile, block, group);
    if (step.updates) {
      fetch_weights(shape, step, tile, part);
      continue;
    }
    // A buffer is free when the store after its own has set off and its own has been read.
    std::uint32_t reading = 0;
    const auto store = [&](int column, int row) {
      hopper::barrier_wait(buffer.filled + 8 * buffer.ring.stage, buffer.ring.parity);
      hopper::store_box(&maps.of[step.out], buffer.address(), column, row, tile.matrix);
      hopper::wait_stores_read<1>();
      if (reading != 0) hopper::barrier_arrive(reading);
      reading = buffer.sent + 8 * buffer.ring.stage;
      buffer.ring.advance();
    };
    for (int column = tile.n; column < tile.n + part.pieces * kPiece; column += kPiece) {
      store(column, part.row);
      if (is_mirrored(step, tile, part.row, column)) store(part.row, column);
    }
    hopper::wait_stores_read<0>();
    hopper::barrier_arrive(reading);
    hopper::wait_stores_complete();
    hopper::add_release(shape.finished + tile.matrix, 1);
  }
}

// ---- the consumers ----

using grouped::release;

// A step of k; operands at these addresses.
template <bool kAcrossA, bool kAcrossB, int kSums>
__device__ __forceinline__ void multiply_step(float (&d)[kSums], std::uint32_t rows, std::uint32_t columns) {
  const std::uint64_t a = kAcrossA ? hopper::operand_mn_major(rows) : hopper::operand_k_major(rows);
  const std::uint64_t b = kAcrossB ? hopper::operand_mn_major(columns) : hopper::operand_k_major(columns);
  hopper::products_begin();
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k)
    hopper::multiply_halves<kAcrossA, kAcrossB>(d, a + k * (kAcrossA ? 128 : 2), b + k * (kAcrossB ? 128 : 2));
  hopper::products_commit();
}

// d += A B for this warpgroup's rows, over all of k.
template <int kSums>
__device__ __forceinline__ void multiply_part(float (&d)[kSums], const Step& step, const Tile& tile, const Part& part,
                                              const Shared& shared, Ring& ring, int group) {
  const Turns turns(step, tile);
  const bool own_rows = !rows_are_columns(step, tile);
  const int depth = step.depth;
  int previous = 0;
  for (int i = 0; i < depth; ++i) {
    hopper::barrier_wait(shared.full + 8 * ring.stage, ring.parity);
    const std::uint32_t columns = shared.columns + ring.stage * Kind::kColumnBytes;
    const std::uint32_t rows =
        own_rows ? shared.rows + ring.stage * kRowBytes + group * kBox : columns + (part.row - tile.n) / kPiece * kBox;
    if (i < turns.b)
      multiply_step<false, false>(d, rows, columns);
    else if (i < turns.a)
      multiply_step<false, true>(d, rows, columns);
    else
      multiply_step<true, true>(d, rows, columns);
    if (i > 0) {
      hopper::products_wait<1>();
      release<Kind>(shared, previous);
    }
    previous = ring.stage;
    ring.advance();
  }
  hopper::products_wait<0>();
  release<Kind>(shared, previous);
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(d[i])::"memory");  // not read before the wait
}

// d += factor C, C from the ring.
template <int kColumns>
__device__ __forceinline__ void add_terms(float (&d)[kColumns / 2], float factor, const Shared& shared, Ring& ring,
                                          const Place& place) {
#pragma unroll
  for (int first = 0; first < kPieces; first += 2) {
    hopper::barrier_wait(shared.full + 8 * ring.stage, ring.parity);
    const std::uint32_t from = shared.columns + ring.stage * Kind::kColumnBytes + 2 * place.group * kBox;
#pragma unroll
    for (int piece = first; piece < first + 2 && piece < kColumns / kPiece; ++piece) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        std::uint32_t r[4];
        hopper::load_matrices(place.matrices(from + (piece - first) * kBox, q), r);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 c = unpack_halves(r[i]);
          float* sums = d + (8 * piece + 2 * q) * 4 + 2 * i;
          sums[0] = fmaf(factor, c.x, sums[0]), sums[1] = fmaf(factor, c.y, sums[1]);
        }
      }
    }
    hopper::async_proxy_fence();
    place.sync();  // all have read
    release<Kind>(shared, ring.stage);
    ring.advance();
  }
}

// As hopper::store_matrices, each 8 x 8 matrix transposed.
__device__ __forceinline__ void store_matrices_turned(std::uint32_t address, const std::uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// A 64 x 64 square of results into the next buffer; with kTurned transposed.
template <bool kTurned>
__device__ __forceinline__ void fill_buffer(const std::uint32_t (&packed)[4][4], const Place& place, Buffer& buffer) {
  hopper::barrier_wait(buffer.sent + 8 * buffer.ring.stage, buffer.ring.parity);
  if constexpr (kTurned) {
    // Lane l names row l % 8 of matrix l / 8; those lie 8 rows of the square below each other two by two.
    const int of = place.lane / 8, within = place.lane % 8;
    const std::uint32_t at =
        buffer.address() + (of / 2 * 8 + within) * 128 + (((place.warp * 2 + of % 2) ^ within) << 4);
#pragma unroll
    for (int q = 0; q < 4; ++q) store_matrices_turned(at + q * 16 * 128, packed[q]);
  } else {
#pragma unroll
    for (int q = 0; q < 4; ++q) hopper::store_matrices(place.matrices(buffer.address(), q), packed[q]);
  }
  hopper::async_proxy_fence();
  __syncwarp();
  if (place.lane == 0) hopper::barrier_arrive(buffer.filled + 8 * buffer.ring.stage);
  buffer.ring.advance();
}

template <int kColumns>
__device__ __forceinline__ void finish_part(float (&d)[kColumns / 2], const Step& step, const Tile& tile,
                                            const Part& part, const Place& place, Buffer& buffer) {
#pragma unroll
  for (int piece = 0; piece < kColumns / kPiece; ++piece) {
    const int column = tile.n + piece * kPiece;
    if (step.identity != 0 && column == part.row) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {  // the thread's element 2 (i % 2) of every eight columns i / 4
        const int right = i / 4 * 8 + place.lane % 4 * 2 + i % 2, down = place.row % 64 + i / 2 % 2 * 8;
        if (right == down) d[32 * piece + i] += step.identity;
      }
    }
    std::uint32_t packed[4][4];
#pragma unroll
    for (int i = 0; i < 16; ++i) packed[i / 4][i % 4] = pack_halves(d[32 * piece + 2 * i], d[32 * piece + 2 * i + 1]);
    fill_buffer<false>(packed, place, buffer);
    if (is_mirrored(step, tile, part.row, column)) fill_buffer<true>(packed, place, buffer);
  }
}

template <int kColumns>
__device__ __forceinline__ void work(const Step& step, const Shared& shared, const Tile& tile, const Part& part,
                                     const Weights& weights, Ring& ring, const Place& place, Buffer& buffer) {
  float d[kColumns / 2] = {};
  multiply_part(d, step, tile, part, shared, ring, place.group);
  if (step.updates) return update_part<kColumns>(d, weights, step, tile, part, place, buffer);
  if (step.scale != 1)
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) d[i] *= step.scale;
  if (step.c >= 0) add_terms<kColumns>(d, step.add, shared, ring, place);
  finish_part<kColumns>(d, step, tile, part, place, buffer);
}

__device__ __forceinline__ void consume(const Shape& shape, const Shared& shared, int block) {
  const Place place(threadIdx.x / 128 - 1, shared.pieces, Kind::kBuffers);
  Ring ring(0);
  Buffer buffer(shared, place.group, 1);
  const bool updates = shape.step[shape.length - 1].updates;
  Weights weights{updates ? MuonRates(shape.update) : MuonRates(), updates && *shape.update.apply != 0};
  for (int n = 0;; ++n) {
    const Tile tile = next_tile(shared, n, true);
    if (tile.none()) return;
    const Step& step = shape.step[tile.step];
    const Part part = part_of(step, tile, block, place.group);
    if (step.updates) {
      const MuonMatrix& matrix = shape.update.batch.matrices[tile.matrix];
      weights.weight = matrix.weight, weights.copy = matrix.copy;
    }
    switch (part.pieces) {
      case 1:
        work<64>(step, shared, tile, part, weights, ring, place, buffer);
        break;
      case 2:
        work<128>(step, shared, tile, part, weights, ring, place, buffer);
        break;
      case 3:
        work<192>(step, shared, tile, part, weights, ring, place, buffer);
        break;
      default:
        work<256>(step, shared, tile, part, weights, ring, place, buffer);
    }
  }
}

__global__ void __maxnreg__(kRegisters)
    chain_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Shape shape) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char raw[];
  const Shared shared(raw);
  const int block = hopper::block_in_cluster();
  if (threadIdx.x == 0) shared.init();
  hopper::cluster_sync();
  if (threadIdx.x < 128) {
    hopper::give_up_registers<kProducer>();
    const int warp = threadIdx.x / kWarp;
    if (threadIdx.x % kWarp == 0 && warp == 0) produce(maps, shape, shared, block);
    if (threadIdx.x % kWarp == 0 && (warp == 1 || warp == 2)) send(maps, shape, shared, block, warp - 1);
    __syncwarp();
  } else {
    hopper::take_registers<kConsumer>();
    consume(shape, shared, block);
    __syncwarp();
  }
  hopper::cluster_sync();  // a block must not end while the other writes into its shared memory
#endif
}

}  // namespace chain

namespace {

using chain::kMostMaps;
using chain::kPiece;
using chain::kTile;
using chain::Maps;
using chain::Shape;
using chain::Step;

// The maps of a chain's tensors, each made once.
class MapTable {
 public:
  MapTable(Maps& maps, int count) : maps_(maps), count_(count) {}
  // Boxes of 64 columns; [count, rows, columns].
  int find(const fp16* data, int rows, int columns, int box_rows) {
    const Key key{data, rows, columns, box_rows};
    const auto found = std::find(keys_.begin(), keys_.end(), key);
    if (found != keys_.end()) return static_cast<int>(found - keys_.begin());
    SWITCHYARD_ASSERT(keys_.size() < kMostMaps, "a chain of products names too many tensors");
    maps_.of[keys_.size()] = tensor_map(data, columns, rows, count_, box_rows);
    keys_.push_back(key);
    return static_cast<int>(keys_.size()) - 1;
  }

 private:
  using Key = std::tuple<const fp16*, int, int, int>;
  Maps& maps_;
  int count_;
  std::vector<Key> keys_;
};

Step step_of(const Product& p, MapTable& maps, int tiles_before) {
  using Lies = ProductOperand;
  SWITCHYARD_ASSERT(p.m > 0 && p.n > 0 && p.k > 0 && p.m % 8 == 0 && p.n % 8 == 0 && p.k % 8 == 0,
                    "a product takes sizes that are multiples of 8");
  SWITCHYARD_ASSERT(!p.symmetric || p.m == p.n, "a symmetric product is square");
  SWITCHYARD_ASSERT(p.a_lies != Lies::kSymmetric || p.m == p.k, "a symmetric operand is square");
  SWITCHYARD_ASSERT(p.b_lies != Lies::kSymmetric || p.n == p.k, "a symmetric operand is square");
  SWITCHYARD_ASSERT(p.a_lies == Lies::kStraight || p.b_lies == Lies::kStraight ||
                        (p.a_lies == Lies::kSymmetric && p.b_lies == Lies::kSymmetric && p.symmetric),
                    "a product takes one of its operands straight, or two symmetric ones whose product is symmetric");
  const int rows = ceil_div(p.m, kTile), columns = ceil_div(p.n, kTile);
  Step step{};
  step.a = p.a_lies == Lies::kTurned ? maps.find(p.a, p.k, p.m, kPiece) : maps.find(p.a, p.m, p.k, kPiece);
  if (p.b_lies != Lies::kStraight) step.b_rows = maps.find(p.b, p.n, p.k, kTile / 2);
  if (p.b_lies != Lies::kTurned) step.b_squares = maps.find(p.b, p.k, p.n, kPiece);
  step.c = p.c ? maps.find(p.c, p.m, p.n, kPiece) : -1;
  step.out = maps.find(p.out, p.m, p.n, kPiece);
  step.m = p.m, step.n = p.n, step.depth = ceil_div(p.k, grouped::kDepth);
  step.column_tiles = Divisor(columns);
  step.tiles = Divisor(p.symmetric ? rows * (rows + 1) / 2 : rows * columns);
  step.tiles_before = tiles_before;
  step.a_lies = p.a_lies, step.b_lies = p.b_lies, step.symmetric = p.symmetric;
  const auto are = [&](Lies a, Lies b) { return p.a_lies == a && p.b_lies == b; };
  const bool turned = are(Lies::kSymmetric, Lies::kSymmetric) || are(Lies::kStraight, Lies::kTurned) ||
                      are(Lies::kTurned, Lies::kStraight);
  step.same = p.symmetric && p.a == p.b && turned;
  step.scale = p.scale, step.add = p.add, step.identity = p.identity;
  return step;
}

// How many matrices take one product before the first of them takes the next: so many that a tile finds those that it
// needs finished. (With all at once the cache holds less of what they read again, and Muon takes 1% longer.)
int matrices_together(const Shape& shape, int clusters) {
  constexpr double kApart = 2;  // tiles between them, of those that are computed at a time
  int fewest = shape.step[0].tiles.by;
  for (int i = 1; i < shape.length; ++i) fewest = std::min<int>(fewest, shape.step[i].tiles.by);
  const int least = ceil_div(static_cast<int>(kApart * clusters), fewest);
  return ceil_div(shape.count, std::max(1, shape.count / least));
}

}  // namespace

void product_chain(const ProductChain& a, Stream stream) {
  if (a.count == 0 || a.length == 0) return;
  SWITCHYARD_ASSERT(a.length <= kLongestChain, "a chain has too many products");
  Maps maps{};
  Shape shape{};
  MapTable table(maps, a.count);
  int tiles = 0;  // of a matrix
  for (int i = 0; i < a.length; ++i) {
    shape.step[i] = step_of(a.products[i], table, tiles);
    tiles += static_cast<int>(shape.step[i].tiles.by);
  }
  const int clusters = multiprocessors() / chain::Kind::kBlocks;
  if (a.update) {
    const Product& last = a.products[a.length - 1];
    const MuonBatch& weights = a.update->batch;
    SWITCHYARD_ASSERT(!last.symmetric && !last.c && last.scale == 1 && last.add == 0 && last.identity == 0,
                      "weights are updated by a plain product");
    SWITCHYARD_ASSERT(weights.count == a.count && weights.rows == last.m && weights.cols == last.n,
                      "weights have the shape of the product that updates them");
    shape.step[a.length - 1].updates = true;
    shape.update = *a.update;
  }
  shape.length = a.length, shape.count = a.count;
  shape.together = matrices_together(shape, clusters);
  shape.tiles_together = Divisor(shape.together * tiles);
  shape.tiles = a.count * tiles;
  shape.scheduler = a.progress, shape.finished = a.progress + 1;
  SWITCHYARD_CUDA(cudaMemsetAsync(a.progress, 0, (a.count + 1) * sizeof(int), static_cast<cudaStream_t>(stream)));

  SWITCHYARD_CUDA(
      cudaFuncSetAttribute(chain::chain_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, chain::Kind::kShared));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = chain::Kind::kBlocks, cluster.val.clusterDim.y = 1, cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(std::min(shape.tiles, clusters) * chain::Kind::kBlocks);
  config.blockDim = dim3(chain::Kind::kThreads);
  config.dynamicSmemBytes = chain::Kind::kShared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  SWITCHYARD_CUDA(cudaLaunchKernelEx(&config, chain::chain_kernel, maps, shape));
}

}  // namespace switchyard::kernels
