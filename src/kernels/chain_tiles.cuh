// Of kernels/product_chain.cu: a chain as its kernel sees it, and the tiles that clusters work through.
#pragma once

#include "kernels/grouped_epilogue.cuh"
#include "kernels/product_chain.h"

namespace switchyard::kernels::chain {

using grouped::kBox;
using grouped::kDepth;
using grouped::kRowBytes;
using grouped::Place;

constexpr int kTile = kProductTile;         // rows and columns of a cluster's tile
constexpr int kPiece = 64, kPieces = 4;     // columns of a piece, pieces of a tile
constexpr int kTileSteps = kTile / kDepth;  // of k

// What the parts shared with the grouped products ask of a kind.
struct Kind {
  static constexpr bool kGathers = false;
  static constexpr int kBlocks = 2, kStages = 4, kBuffers = 2, kThreads = 384;
  static constexpr int kReaders = 3;  // who loads, and for each consumer warpgroup who sends
  static constexpr int kColumnBytes = kTile * kDepth * 2;
  static constexpr int kShared = kStages * (kRowBytes + kColumnBytes) + 2 * kBuffers * kBox + 1024 + 256;
};
using Ring = grouped::Ring<Kind::kStages>;

struct Shared : grouped::Shared<Kind> {
  std::uint32_t filled, sent;  // barriers of the buffers of results: [2 groups][2]
  __device__ explicit Shared(const void* raw) : grouped::Shared<Kind>(raw), filled(next + 32), sent(filled + 32) {}
  __device__ void init() const {
    for (int i = 0; i < 2 * Kind::kBuffers; ++i) {
      hopper::barrier_init(filled + 8 * i, 4);  // a consumer warpgroup's warps
      hopper::barrier_init(sent + 8 * i, 1);
    }
    grouped::Shared<Kind>::init();
  }
};

// A position in the two buffers of a consumer warpgroup.
struct Buffer {
  grouped::Ring<Kind::kBuffers> ring;
  std::uint32_t at, filled, sent;
  __device__ Buffer(const Shared& shared, int group, std::uint32_t parity)
      : ring(parity),
        at(shared.pieces + group * Kind::kBuffers * kBox),
        filled(shared.filled + group * Kind::kBuffers * 8),
        sent(shared.sent + group * Kind::kBuffers * 8) {}
  __device__ std::uint32_t address() const { return at + ring.stage * kBox; }
};

constexpr int kRegisters = 160, kConsumer = 216, kProducer = 48;
static_assert(3 * kRegisters == 2 * kConsumer + kProducer);

constexpr int kMostMaps = 16;
struct Maps {
  CUtensorMap of[kMostMaps];
};

// A product, the same for all matrices.
struct Step {
  int a, b_rows, b_squares, c, out;  // maps; b_rows: boxes of 128 rows, of what is turned; c: or -1
  int m, n, depth;                   // depth: steps of k
  Divisor column_tiles, tiles;       // tiles: of a matrix
  int tiles_before;                  // of a matrix, in the products before
  ProductOperand a_lies, b_lies;
  bool symmetric, same;  // same: B is A, turned
  bool updates;          // weights, instead of a result
  float scale, add, identity;
};

struct Shape {
  Step step[kLongestChain];
  int length, count;
  int together;  // matrices, of one product before the next
  Divisor tiles_together;
  int tiles;
  int *scheduler, *finished;  // finished: parts of tiles, a matrix
  MuonApply update;
};

constexpr int kParts = 4;  // of a tile: warpgroups of a cluster

struct Tile {
  int step, matrix, m, n;  // m, n: first row and column
  __device__ explicit Tile(int4 words) : step(words.x), matrix(words.y), m(words.z), n(words.w) {}
  __device__ bool none() const { return step < 0; }
};

// The words of the index-th tile of a launch.
__device__ __forceinline__ int4 tile_at(const Shape& shape, int index) {
  if (index >= shape.tiles) return {-1, 0, 0, 0};
  const int turn = shape.tiles_together.quotient(index), first = turn * shape.together;
  const int matrices = min(shape.together, shape.count - first);
  int rest = shape.tiles_together.remainder(index), at = 0;
#pragma unroll
  for (int jump = kLongestChain / 2; jump > 0; jump /= 2)
    if (at + jump < shape.length && shape.step[at + jump].tiles_before * matrices <= rest) at += jump;
  const Step& step = shape.step[at];
  rest -= step.tiles_before * matrices;
  const int matrix = first + step.tiles.quotient(rest);
  rest = step.tiles.remainder(rest);
  if (!step.symmetric)
    return {at, matrix, step.column_tiles.quotient(rest) * kTile, step.column_tiles.remainder(rest) * kTile};
  int row = static_cast<int>((sqrtf(8.0f * rest + 1.0f) - 1.0f) * 0.5f);  // the largest with row (row + 1) / 2 <= rest
  while ((row + 1) * (row + 2) / 2 <= rest) ++row;
  while (row * (row + 1) / 2 > rest) --row;
  return {at, matrix, row * kTile, (rest - row * (row + 1) / 2) * kTile};
}

// The 64 rows of a tile that one warpgroup computes.
struct Part {
  int row, pieces;  // its first row; pieces of 64 columns from the tile's first column on
};

__device__ __forceinline__ Part part_of(const Step& step, const Tile& tile, int block, int group) {
  const bool diagonal = step.symmetric && tile.m == tile.n;
  const int at = !diagonal ? 2 * block + group : group == 0 ? block : 3 - block;
  return {tile.m + at * kPiece, min(diagonal ? at + 1 : kPieces, (step.n - tile.n + kPiece - 1) / kPiece)};
}

// An operand lies across where its rows in memory are steps of k. A tile's steps of k are in order those in which
// neither does, those in which B does, and those in which both do.
struct Turns {
  int b, a;  // the steps from which on they lie across

  __device__ Turns(const Step& step, const Tile& tile)
      : b(step.b_lies == ProductOperand::kTurned     ? step.depth
          : step.b_lies == ProductOperand::kStraight ? 0
                                                     : min(step.depth, tile.n / kDepth + kTileSteps)),
        a(step.a_lies == ProductOperand::kTurned     ? 0
          : step.a_lies == ProductOperand::kStraight ? step.depth
                                                     : min(step.depth, tile.m / kDepth + kTileSteps)) {}
};

// The rows of a tile on the diagonal are among its columns.
__device__ __forceinline__ bool rows_are_columns(const Step& step, const Tile& tile) {
  return step.same && tile.m == tile.n;
}

// Whether a square is also the one across the diagonal of its tile.
__device__ __forceinline__ bool is_mirrored(const Step& step, const Tile& tile, int row, int column) {
  return step.symmetric && tile.m == tile.n && column < row;
}

}  // namespace switchyard::kernels::chain
