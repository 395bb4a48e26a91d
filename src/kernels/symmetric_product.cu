// A cluster of two blocks computes tiles of 256 x 256, each block 128 rows: as in kernels/grouped_gemm.cuh one warp
// fills a ring of stages and two warpgroups multiply 64 rows each; each block loads half of B for both. Smaller tiles
// would ask more of L2 than it gives (128 x 128: 64 bytes a clock and multiprocessor of about 30).
//
// Of a symmetric result's tile on the diagonal, 64 rows need 64, 128, 192 or 256 columns; one block takes the outer
// rows, the other the inner ones, and both have the same work. 768 x 768 costs 54% of the whole product.
#include <algorithm>

#include "kernels/cuda_check.h"
#include "kernels/device_limits.h"
#include "kernels/grouped_epilogue.cuh"
#include "kernels/symmetric_product.h"
#include "kernels/tensor_map.h"
#include "kernels/wgmma_half.cuh"

namespace switchyard::kernels {
namespace product {

using grouped::kBox;
using grouped::kDepth;
using grouped::kRowBytes;
using grouped::Place;

constexpr int kTile = 256;                           // rows and columns of a cluster's tile
constexpr int kPiece = kProductSquare, kPieces = 4;  // columns of a piece, pieces of a tile

// What the parts shared with the grouped products ask of a kind.
struct Kind {
  static constexpr bool kGathers = false;
  static constexpr int kBlocks = 2, kStages = 4, kBuffers = 2, kThreads = 384, kProducerWarps = 1;
  static constexpr int kColumnBytes = kTile * kDepth * 2;
  static constexpr int kShared = kStages * (kRowBytes + kColumnBytes) + 2 * kBuffers * kBox + 1024 + 256;
};
using Shared = grouped::Shared<Kind>;
using Ring = grouped::Ring<Kind::kStages>;

constexpr int kRegisters = 160, kConsumer = 216, kProducer = 48;
static_assert(3 * kRegisters == 2 * kConsumer + kProducer);

struct Maps {
  CUtensorMap a, b, c, out;
};

struct Shape {
  int m, n, steps, count;  // steps: of k
  Divisor column_tiles, tiles_a_matrix;
  int tiles;
  bool symmetric, same, has_c, backward;  // same: B is A, turned
  float scale, add, identity;
  int* scheduler;
};

struct Tile {
  int matrix, m, n;  // first row and column
};

__device__ __forceinline__ Tile tile_at(const Shape& shape, int index) {
  const int place = shape.tiles_a_matrix.quotient(index), rest = shape.tiles_a_matrix.remainder(index);
  const int matrix = shape.backward ? shape.count - 1 - place : place;
  if (!shape.symmetric)
    return {matrix, shape.column_tiles.quotient(rest) * kTile, shape.column_tiles.remainder(rest) * kTile};
  int row = static_cast<int>((sqrtf(8.0f * rest + 1.0f) - 1.0f) * 0.5f);  // the largest with row (row + 1) / 2 <= rest
  while ((row + 1) * (row + 2) / 2 <= rest) ++row;
  while (row * (row + 1) / 2 > rest) --row;
  return {matrix, row * kTile, (rest - row * (row + 1) / 2) * kTile};
}

// The 64 rows of a tile that one warpgroup computes.
struct Part {
  int row, pieces;  // its first row; pieces of 64 columns from the tile's first column on
};

__device__ __forceinline__ Part part_of(const Shape& shape, const Tile& tile, int block, int group) {
  const bool diagonal = shape.symmetric && tile.m == tile.n;
  const int at = !diagonal ? 2 * block + group : group == 0 ? block : 3 - block;
  return {tile.m + at * kPiece, min(diagonal ? at + 1 : kPieces, (shape.n - tile.n + kPiece - 1) / kPiece)};
}

// ---- the producer ----

// 64 deep in k and 64 * kSquares along the other side; across: rows are steps of k.
template <bool kAcross, int kBlocks>
__device__ __forceinline__ void load_squares(std::uint32_t to, const CUtensorMap& map, std::uint32_t full, int k,
                                             int along, int matrix) {
  if constexpr (kAcross)
    hopper::load_box<kBlocks>(to, &map, full, along, k, matrix);
  else
    hopper::load_box<kBlocks>(to, &map, full, k, along, matrix);
}

// C passes through the ring behind the operands: two stages of two pieces for each warpgroup.
__device__ __forceinline__ void load_terms(const Maps& maps, const Tile& tile, const Part (&parts)[2],
                                           const Shared& shared, Ring& ring) {
  for (int first = 0; first < kPieces; first += 2, ring.advance()) {
    hopper::barrier_wait(shared.empty + 8 * ring.stage, ring.parity);
    const std::uint32_t full = shared.full + 8 * ring.stage, to = shared.columns + ring.stage * Kind::kColumnBytes;
    const auto boxes = [&](int group) { return max(0, min(2, parts[group].pieces - first)); };
    hopper::barrier_expect(full, (boxes(0) + boxes(1)) * kBox);
    for (int group = 0; group < 2; ++group)
      for (int i = 0; i < boxes(group); ++i)
        hopper::load_box<1>(to + (2 * group + i) * kBox, &maps.c, full, tile.n + (first + i) * kPiece, parts[group].row,
                            tile.matrix);
  }
}

template <bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void load_stage(const Maps& maps, const Tile& tile, const Part (&parts)[2], bool rows_too,
                                           int k, const Shared& shared, int stage, int block) {
  const std::uint32_t full = shared.full + 8 * stage, rows = shared.rows + stage * kRowBytes;
  const std::uint32_t columns = shared.columns + stage * Kind::kColumnBytes + block * (Kind::kColumnBytes / 2);
  hopper::barrier_expect(full, (rows_too ? kRowBytes : 0) + Kind::kColumnBytes);
  const int column = tile.n + block * (kTile / 2);
  load_squares<kAcrossB, 2>(columns, maps.b, full, k, column, tile.matrix);
  if (kAcrossB) load_squares<kAcrossB, 2>(columns + kBox, maps.b, full, k, column + kPiece, tile.matrix);
  if (!rows_too) return;
  load_squares<kAcrossA, 1>(rows, maps.a, full, k, parts[0].row, tile.matrix);
  load_squares<kAcrossA, 1>(rows + kBox, maps.a, full, k, parts[1].row, tile.matrix);
}

// The rows of a tile on the diagonal are among its columns.
__device__ __forceinline__ bool rows_are_columns(const Shape& shape, const Tile& tile) {
  return shape.same && tile.m == tile.n;
}

template <bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void produce(const Maps& maps, const Shape& shape, const Shared& shared, int clusters,
                                        int first, int block) {
  Ring ring(1);
  for (int index = first, n = 0; index < shape.tiles; ++n) {
    const Tile tile = tile_at(shape, index);
    const Part parts[2] = {part_of(shape, tile, block, 0), part_of(shape, tile, block, 1)};
    const bool rows_too = !rows_are_columns(shape, tile);
    int drawn = 0;
    const int draw_at = max(0, shape.steps - 8);  // early enough to hide the way to memory
    for (int step = 0; step < shape.steps; ++step, ring.advance()) {
      if (step == draw_at && block == 0) drawn = grouped::draw_tile(shape.scheduler);
      hopper::barrier_wait(shared.empty + 8 * ring.stage, ring.parity);
      load_stage<kAcrossA, kAcrossB>(maps, tile, parts, rows_too, step * kDepth, shared, ring.stage, block);
    }
    if (shape.has_c) load_terms(maps, tile, parts, shared, ring);
    grouped::publish_tile<Kind>(shared, n, drawn + clusters, block);
    index = grouped::next_tile<Kind>(shared, n, false);
  }
  if (block == 0) grouped::leave_scheduler(shape.scheduler, clusters);
}

// ---- the consumers ----

using grouped::release;

// d += A B for this warpgroup's rows, over all of k. square: where the rows lie among the tile's columns, or -1.
template <bool kAcrossA, bool kAcrossB, int kColumns>
__device__ __forceinline__ void multiply_part(float (&d)[kColumns / 2], const Shared& shared, Ring& ring, int steps,
                                              int group, int square) {
  int previous = 0;
  for (int step = 0; step < steps; ++step) {
    hopper::barrier_wait(shared.full + 8 * ring.stage, ring.parity);
    const std::uint32_t columns = shared.columns + ring.stage * Kind::kColumnBytes;
    const std::uint32_t rows =
        square < 0 ? shared.rows + ring.stage * kRowBytes + group * kBox : columns + square * kBox;
    const std::uint64_t a = kAcrossA ? hopper::operand_mn_major(rows) : hopper::operand_k_major(rows);
    const std::uint64_t b = kAcrossB ? hopper::operand_mn_major(columns) : hopper::operand_k_major(columns);
    hopper::products_begin();
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k)
      hopper::multiply_halves<kAcrossA, kAcrossB>(d, a + k * (kAcrossA ? 128 : 2), b + k * (kAcrossB ? 128 : 2));
    hopper::products_commit();
    if (step > 0) {
      hopper::products_wait<1>();
      release<Kind>(shared, previous);
    }
    previous = ring.stage;
    ring.advance();
  }
  hopper::products_wait<0>();
  release<Kind>(shared, previous);
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) asm volatile("" : "+f"(d[i])::"memory");  // not read before the wait
}

// d = scale d + add C, C from the ring.
template <int kColumns>
__device__ __forceinline__ void add_terms(float (&d)[kColumns / 2], const Shape& shape, const Shared& shared,
                                          Ring& ring, const Place& place) {
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
          sums[0] = fmaf(shape.add, c.x, sums[0]), sums[1] = fmaf(shape.add, c.y, sums[1]);
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

// The sums of a 64 x 64 square to its place, and with `mirrored` also to the place across the diagonal.
__device__ __forceinline__ void send_square(const std::uint32_t (&packed)[4][4], const Maps& maps, Place& place,
                                            int row, int column, int matrix, bool mirrored) {
  const std::uint32_t straight = place.free_buffer();
#pragma unroll
  for (int q = 0; q < 4; ++q) hopper::store_matrices(place.matrices(straight, q), packed[q]);
  grouped::send_piece(place, [&] { hopper::store_box(&maps.out, straight, column, row, matrix); });
  if (!mirrored) return;
  const std::uint32_t turned = place.free_buffer();
  // Lane l names row l % 8 of matrix l / 8; those lie 8 rows of the square below each other two by two.
  const int of = place.lane / 8, within = place.lane % 8;
  const std::uint32_t at = turned + (of / 2 * 8 + within) * 128 + (((place.warp * 2 + of % 2) ^ within) << 4);
#pragma unroll
  for (int q = 0; q < 4; ++q) store_matrices_turned(at + q * 16 * 128, packed[q]);
  grouped::send_piece(place, [&] { hopper::store_box(&maps.out, turned, row, column, matrix); });
}

template <int kColumns>
__device__ __forceinline__ void finish_part(float (&d)[kColumns / 2], const Maps& maps, const Shape& shape,
                                            const Tile& tile, const Part& part, Place& place) {
#pragma unroll
  for (int piece = 0; piece < kColumns / kPiece; ++piece) {
    const int column = tile.n + piece * kPiece;
    if (shape.identity != 0 && column == part.row) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {  // the thread's element 2 (i % 2) of every eight columns i / 4
        const int right = i / 4 * 8 + place.lane % 4 * 2 + i % 2, down = place.row % 64 + i / 2 % 2 * 8;
        if (right == down) d[32 * piece + i] += shape.identity;
      }
    }
    std::uint32_t packed[4][4];
#pragma unroll
    for (int i = 0; i < 16; ++i) packed[i / 4][i % 4] = pack_halves(d[32 * piece + 2 * i], d[32 * piece + 2 * i + 1]);
    send_square(packed, maps, place, part.row, column, tile.matrix, shape.symmetric && column < part.row);
  }
}

template <bool kAcrossA, bool kAcrossB, int kColumns>
__device__ __forceinline__ void work(const Maps& maps, const Shape& shape, const Shared& shared, const Tile& tile,
                                     const Part& part, Ring& ring, Place& place) {
  float d[kColumns / 2] = {};
  const int square = rows_are_columns(shape, tile) ? (part.row - tile.n) / kPiece : -1;
  multiply_part<kAcrossA, kAcrossB, kColumns>(d, shared, ring, shape.steps, place.group, square);
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) d[i] *= shape.scale;
  if (shape.has_c) add_terms<kColumns>(d, shape, shared, ring, place);
  finish_part<kColumns>(d, maps, shape, tile, part, place);
}

template <bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void consume(const Maps& maps, const Shape& shape, const Shared& shared, int first,
                                        int block) {
  Place place(threadIdx.x / 128 - 1, shared.pieces, Kind::kBuffers);
  Ring ring(0);
  for (int index = first, n = 0; index < shape.tiles; ++n) {
    const Tile tile = tile_at(shape, index);
    const Part part = part_of(shape, tile, block, place.group);
    switch (part.pieces) {
      case 1:
        work<kAcrossA, kAcrossB, 64>(maps, shape, shared, tile, part, ring, place);
        break;
      case 2:
        work<kAcrossA, kAcrossB, 128>(maps, shape, shared, tile, part, ring, place);
        break;
      case 3:
        work<kAcrossA, kAcrossB, 192>(maps, shape, shared, tile, part, ring, place);
        break;
      default:
        work<kAcrossA, kAcrossB, 256>(maps, shape, shared, tile, part, ring, place);
    }
    index = grouped::next_tile<Kind>(shared, n, true);
  }
  if (place.leads()) hopper::wait_stores_complete();
}

template <bool kAcrossA, bool kAcrossB>
__global__ void __maxnreg__(kRegisters) product_kernel(const __grid_constant__ Maps maps, const Shape shape) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char raw[];
  const Shared shared(raw);
  const int block = hopper::block_in_cluster();
  if (threadIdx.x == 0) shared.init();
  hopper::cluster_sync();
  const int clusters = gridDim.x / Kind::kBlocks, first = blockIdx.x / Kind::kBlocks;
  if (threadIdx.x < 128) {
    hopper::give_up_registers<kProducer>();
    if (threadIdx.x == 0) produce<kAcrossA, kAcrossB>(maps, shape, shared, clusters, first, block);
    __syncwarp();
  } else {
    hopper::take_registers<kConsumer>();
    consume<kAcrossA, kAcrossB>(maps, shape, shared, first, block);
    __syncwarp();
  }
  hopper::cluster_sync();  // a block must not end while the other writes into its shared memory
#endif
}

}  // namespace product

namespace {

using product::Kind;
using product::kPiece;
using product::kTile;
using product::Maps;
using product::Shape;

template <bool kAcrossA, bool kAcrossB>
void launch(const SymmetricProduct& a, const Shape& shape, Stream stream) {
  Maps maps{};
  maps.a = kAcrossA ? tensor_map(a.a, a.m, a.k, a.count, kPiece) : tensor_map(a.a, a.k, a.m, a.count, kPiece);
  maps.b = kAcrossB ? tensor_map(a.b, a.n, a.k, a.count, kPiece) : tensor_map(a.b, a.k, a.n, a.count, kTile / 2);
  if (a.c) maps.c = tensor_map(a.c, a.n, a.m, a.count, kPiece);
  maps.out = tensor_map(a.out, a.n, a.m, a.count, kPiece);
  const auto kernel = product::product_kernel<kAcrossA, kAcrossB>;
  SWITCHYARD_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Kind::kShared));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = Kind::kBlocks, cluster.val.clusterDim.y = 1, cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(std::min(shape.tiles, multiprocessors() / Kind::kBlocks) * Kind::kBlocks);
  config.blockDim = dim3(Kind::kThreads);
  config.dynamicSmemBytes = Kind::kShared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  SWITCHYARD_CUDA(cudaLaunchKernelEx(&config, kernel, maps, shape));
}

}  // namespace

void symmetric_product(const SymmetricProduct& a, Stream stream) {
  if (a.count == 0) return;
  SWITCHYARD_ASSERT(a.m > 0 && a.n > 0 && a.k > 0 && a.m % 8 == 0 && a.n % 8 == 0 && a.k % 8 == 0,
                    "symmetric_product takes sizes that are multiples of 8");
  SWITCHYARD_ASSERT(!a.symmetric || a.m == a.n, "a symmetric product is square");
  SWITCHYARD_ASSERT(!a.a_turned || !a.b_turned, "symmetric_product does not take both operands turned");
  const int rows = ceil_div(a.m, kTile), columns = ceil_div(a.n, kTile);
  const int tiles = a.symmetric ? rows * (rows + 1) / 2 : rows * columns;
  const bool same = a.symmetric && a.a == a.b && a.a_turned != a.b_turned;
  const Shape shape{a.m,
                    a.n,
                    ceil_div(a.k, grouped::kDepth),
                    a.count,
                    Divisor(columns),
                    Divisor(tiles),
                    tiles * a.count,
                    a.symmetric,
                    same,
                    a.c != nullptr,
                    a.backward,
                    a.scale,
                    a.add,
                    a.identity,
                    a.scheduler};
  if (a.a_turned)
    launch<true, true>(a, shape, stream);
  else if (a.b_turned)
    launch<false, false>(a, shape, stream);
  else
    launch<false, true>(a, shape, stream);
}

}  // namespace switchyard::kernels
