// A block computes tiles of 128 x 128 with two warpgroups of 64 rows each, fed by one warp through TMA. Two blocks
// share a multiprocessor: while one writes its tile out, the tensor cores work for the other. Square tiles of 128
// because only 58% of them lie on or below the diagonal of a 768 x 768 result; wider ones would compute two thirds.
#include <algorithm>

#include "kernels/cuda_check.h"
#include "kernels/hopper.cuh"
#include "kernels/symmetric_product.h"
#include "kernels/tensor_map.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kTile = kProductTile;  // rows and columns
constexpr int kDepth = 64;           // of k a stage: 128 bytes, the width of the swizzle
constexpr int kStages = 3;
constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kThreads = 2 * kGroup + kWarp;
constexpr int kBlock = 64 * 64 * 2;           // bytes of 64 rows of 128 bytes, swizzled
constexpr int kOperand = kTile * kDepth * 2;  // bytes of one operand's stage
constexpr int kStagedAt = kStages * 2 * kOperand, kBarriersAt = kStagedAt + 2 * kBlock;
constexpr int kSharedBytes = kBarriersAt + 2 * kStages * 8;
static_assert(2 * (kSharedBytes + 1024) <= 228 * 1024, "two blocks share a multiprocessor");

// As hopper::store_matrices, each 8 x 8 matrix transposed.
__device__ __forceinline__ void store_matrices_turned(std::uint32_t address, const std::uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

#define EIGHT(i)                                                                                              \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
// d += A B in fp16, A 64 x 16, B 16 x 128; asynchronous. Across: rows are steps of k.
template <bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void multiply(float (&d)[64], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, %67, %68;\n}\n"
      : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56)
      : "l"(a), "l"(b), "r"(1), "n"(kAcrossA ? 1 : 0), "n"(kAcrossB ? 1 : 0));
}
#undef EIGHT

// ---- the kernel ----

struct Shape {
  const fp16* c;
  int m, n, depth_blocks, tile_columns, tiles, total;  // tiles: of one matrix; total: of all
  bool symmetric;
  float scale, add, identity;
};

struct TilePlace {
  int matrix, m, n;  // first row and column
};

__device__ __forceinline__ TilePlace place_of(const Shape& shape, int tile) {
  const int matrix = tile / shape.tiles, rest = tile - matrix * shape.tiles;
  if (!shape.symmetric) return {matrix, rest / shape.tile_columns * kTile, rest % shape.tile_columns * kTile};
  int row = static_cast<int>((sqrtf(8.0f * rest + 1.0f) - 1.0f) * 0.5f);  // the largest with row (row + 1) / 2 <= rest
  while ((row + 1) * (row + 2) / 2 <= rest) ++row;
  while (row * (row + 1) / 2 > rest) --row;
  return {matrix, row * kTile, (rest - row * (row + 1) / 2) * kTile};
}

struct Stages {
  unsigned base;
  __device__ unsigned a(int stage) const { return base + stage * 2 * kOperand; }
  __device__ unsigned b(int stage) const { return a(stage) + kOperand; }
  __device__ unsigned full(int stage) const { return base + kBarriersAt + 8 * stage; }
  __device__ unsigned empty(int stage) const { return base + kBarriersAt + 8 * (kStages + stage); }
};

// The stage of the ring that comes next, and how often the ring went round.
struct Turn {
  int stage = 0;
  unsigned round = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, ++round;
  }
};

template <bool kAcross>
__device__ __forceinline__ void load_operand(unsigned to, const CUtensorMap& map, unsigned barrier, int k, int row,
                                             int matrix) {
  if constexpr (kAcross) {
    hopper::load_box<1>(to, &map, barrier, row, k, matrix);
    hopper::load_box<1>(to + kBlock, &map, barrier, row + 64, k, matrix);
  } else {
    hopper::load_box<1>(to, &map, barrier, k, row, matrix);
  }
}

template <bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void load_tiles(const Stages& stages, const CUtensorMap& map_a, const CUtensorMap& map_b,
                                           const Shape& shape) {
  Turn turn;
  for (int tile = blockIdx.x; tile < shape.total; tile += gridDim.x) {
    const TilePlace at = place_of(shape, tile);
    for (int block = 0; block < shape.depth_blocks; ++block, turn.next()) {
      hopper::barrier_wait(stages.empty(turn.stage), (turn.round & 1) ^ 1);
      const unsigned full = stages.full(turn.stage);
      hopper::barrier_expect(full, 2 * kOperand);
      load_operand<kAcrossA>(stages.a(turn.stage), map_a, full, block * kDepth, at.m, at.matrix);
      load_operand<kAcrossB>(stages.b(turn.stage), map_b, full, block * kDepth, at.n, at.matrix);
    }
  }
}

// d += this warpgroup's 64 rows of A times B, over all of k.
template <bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void multiply_tile(const Stages& stages, Turn& turn, int depth_blocks, int group, int thread,
                                              float (&d)[64]) {
  int before = 0;
  for (int block = 0; block < depth_blocks; ++block, turn.next()) {
    hopper::barrier_wait(stages.full(turn.stage), turn.round & 1);
    const unsigned rows = stages.a(turn.stage) + group * kBlock;
    const std::uint64_t a = kAcrossA ? hopper::operand_mn_major(rows) : hopper::operand_k_major(rows);
    const std::uint64_t b =
        kAcrossB ? hopper::operand_mn_major(stages.b(turn.stage)) : hopper::operand_k_major(stages.b(turn.stage));
    hopper::products_begin();
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k)  // 16 steps of k: 32 bytes along, 16 rows of 128 bytes across
      multiply<kAcrossA, kAcrossB>(d, a + k * (kAcrossA ? 128 : 2), b + k * (kAcrossB ? 128 : 2));
    hopper::products_commit();
    if (block > 0) {
      hopper::products_wait<1>();
      if (thread == 0) hopper::barrier_arrive(stages.empty(before));
    }
    before = turn.stage;
  }
  hopper::products_wait<0>();
  if (thread == 0) hopper::barrier_arrive(stages.empty(before));
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(d[i])::"memory");  // not read before the wait
}

// Lane l holds rows l / 4 and l / 4 + 8 of its warp's sixteen, columns 2 (l % 4) and the next of every eight.
__device__ __forceinline__ void add_terms(const Shape& shape, const TilePlace& at, int row, int column,
                                          float (&d)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) d[i] *= shape.scale;
  if (shape.c) {
    const fp16* c = shape.c + (static_cast<std::int64_t>(at.matrix) * shape.m + row) * shape.n + column;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int down = i % 2 * 8, right = i / 2 * 8;
      if (row + down >= shape.m || column + right >= shape.n) continue;
      const float2 v =
          unpack_halves(*reinterpret_cast<const unsigned*>(c + static_cast<std::int64_t>(down) * shape.n + right));
      d[2 * i] = fmaf(shape.add, v.x, d[2 * i]);
      d[2 * i + 1] = fmaf(shape.add, v.y, d[2 * i + 1]);
    }
  }
  if (shape.identity != 0 && at.m == at.n) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int right = column + i / 2 * 8 - row - i % 2 * 8;
      if (right == 0) d[2 * i] += shape.identity;
      if (right == -1) d[2 * i + 1] += shape.identity;
    }
  }
}

// Columns [64 kHalf, 64 kHalf + 64) of the warpgroup's rows through shared memory to `out` at column x, row y; turned:
// their transpose.
template <int kHalf, bool kTurned>
__device__ __forceinline__ void write_half(const unsigned (&packed)[32], unsigned staged, int group, int thread,
                                           const CUtensorMap& out, int x, int y, int matrix) {
  const int lane = thread % kWarp, warp = thread / kWarp;
  const int of = lane / 8, within = lane % 8;  // the matrix, and its row, whose place this lane names
  // The swizzle: row r keeps its c-th 16 bytes at c ^ (r % 8).
  const unsigned row = kTurned ? of / 2 * 8 + within : warp * 16 + of % 2 * 8 + within;
  const unsigned chunk = (kTurned ? warp * 2 + of % 2 : of / 2) ^ within;
  const unsigned place = staged + row * 128 + chunk * 16;
  if (thread == 0) hopper::wait_stores_read<0>();  // the last block has left the memory
  hopper::warpgroup_sync(group + 1);
#pragma unroll
  for (int q = 0; q < 4; ++q) {  // 16 columns: upper and lower rows of the first eight, then of the others
    const unsigned* v = packed + (8 * kHalf + 2 * q) * 2;
    const unsigned four[4] = {v[0], v[1], v[2], v[3]};
    if constexpr (kTurned)
      store_matrices_turned(place + q * 16 * 128, four);
    else
      hopper::store_matrices(place ^ (q * 2 * 16), four);
  }
  hopper::async_proxy_fence();
  hopper::warpgroup_sync(group + 1);
  if (thread == 0) hopper::store_box(&out, staged, x, y, matrix);
}

template <bool kAcrossA, bool kAcrossB>
__global__ void __launch_bounds__(kThreads, 2)
    product_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                   const __grid_constant__ CUtensorMap map_out, const Shape shape) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  const Stages stages{hopper::smem_address(memory)};
  if (threadIdx.x == 0) {
    if (stages.base % 1024 != 0) __trap();  // the swizzle goes by address
    for (int i = 0; i < kStages; ++i) hopper::barrier_init(stages.full(i), 1), hopper::barrier_init(stages.empty(i), 2);
    hopper::barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= 2 * kGroup) {
    if (threadIdx.x == 2 * kGroup) load_tiles<kAcrossA, kAcrossB>(stages, map_a, map_b, shape);
    return;
  }
  const int group = threadIdx.x / kGroup, thread = threadIdx.x % kGroup, lane = thread % kWarp;
  const unsigned staged = stages.base + kStagedAt + group * kBlock;
  Turn turn;
  for (int tile = blockIdx.x; tile < shape.total; tile += gridDim.x) {
    const TilePlace at = place_of(shape, tile);
    float d[64] = {};
    multiply_tile<kAcrossA, kAcrossB>(stages, turn, shape.depth_blocks, group, thread, d);
    add_terms(shape, at, at.m + group * 64 + thread / kWarp * 16 + lane / 4, at.n + lane % 4 * 2, d);
    unsigned packed[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) packed[i] = pack_halves(d[2 * i], d[2 * i + 1]);
    const int m = at.m + group * 64;
    write_half<0, false>(packed, staged, group, thread, map_out, at.n, m, at.matrix);
    write_half<1, false>(packed, staged, group, thread, map_out, at.n + 64, m, at.matrix);
    if (shape.symmetric && at.m != at.n) {
      write_half<0, true>(packed, staged, group, thread, map_out, m, at.n, at.matrix);
      write_half<1, true>(packed, staged, group, thread, map_out, m, at.n + 64, at.matrix);
    }
  }
  if (thread == 0) hopper::wait_stores_complete();
#endif
}

// ---- launch ----

template <bool kAcrossA, bool kAcrossB>
void launch(const SymmetricProduct& a, const Shape& shape, Stream stream) {
  const CUtensorMap map_a =
      kAcrossA ? tensor_map(a.a, a.m, a.k, a.count, 64) : tensor_map(a.a, a.k, a.m, a.count, kTile);
  const CUtensorMap map_b =
      kAcrossB ? tensor_map(a.b, a.n, a.k, a.count, 64) : tensor_map(a.b, a.k, a.n, a.count, kTile);
  const CUtensorMap map_out = tensor_map(a.out, a.n, a.m, a.count, 64);
  const auto kernel = product_kernel<kAcrossA, kAcrossB>;
  SWITCHYARD_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  kernel<<<std::min(shape.total, 2 * multiprocessors()), kThreads, kSharedBytes, stream>>>(map_a, map_b, map_out,
                                                                                           shape);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace

bool symmetric_product_supported(int capability_major, int capability_minor) {
  return capability_major == 9 && capability_minor == 0;
}

void symmetric_product(const SymmetricProduct& a, Stream stream) {
  if (a.count == 0) return;
  SWITCHYARD_ASSERT(a.m > 0 && a.n > 0 && a.k > 0 && a.m % 8 == 0 && a.n % 8 == 0 && a.k % 8 == 0,
                    "symmetric_product takes sizes that are multiples of 8");
  SWITCHYARD_ASSERT(!a.symmetric || a.m == a.n, "a symmetric product is square");
  SWITCHYARD_ASSERT(!a.a_turned || !a.b_turned, "symmetric_product does not take both operands turned");
  const int rows = ceil_div(a.m, kTile), columns = ceil_div(a.n, kTile);
  const int tiles = a.symmetric ? rows * (rows + 1) / 2 : rows * columns;
  const Shape shape{a.c,     a.m,   a.n,       ceil_div(a.k, kDepth), columns, tiles, tiles * a.count, a.symmetric,
                    a.scale, a.add, a.identity};
  if (a.a_turned)
    launch<true, true>(a, shape, stream);
  else if (a.b_turned)
    launch<false, false>(a, shape, stream);
  else
    launch<false, true>(a, shape, stream);
}

}  // namespace switchyard::kernels
