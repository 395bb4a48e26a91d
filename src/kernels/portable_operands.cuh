// Of the portable product kernel (kernels/portable_gemm.cuh): how its operands lie in shared memory, how they get
// there, and what a thread multiplies.
//
// A stage of an operand is 8 KB: 128 lines (rows of the left operand, columns of the right one) by 64 bytes of depth.
// Where depth runs along memory, as in x W^T, a line keeps its 64 bytes together, and two lines share 128 bytes; where
// it does not, one step of depth keeps its 128 lines together. Either way pieces of 16 bytes are swizzled so that eight
// lines, or eight steps of depth, at the same place lie in different banks.
#pragma once

#include "kernels/ampere.cuh"
#include "kernels/split_mma.cuh"
#include "kernels/vector.cuh"

namespace switchyard::kernels::portable {

constexpr int kTile = 128, kThreads = 256;
constexpr int kOperandBytes = 128 * 64, kStageBytes = 2 * kOperandBytes;

template <class T>
inline constexpr int kDepth = 64 / static_cast<int>(sizeof(T));  // of a stage
template <class T>
inline constexpr int kPiece = 16 / static_cast<int>(sizeof(T));  // values of 16 bytes

// Bytes from the operand's start: piece p of a line's depth, or piece p of the lines at one step of depth.
__device__ __forceinline__ int place_in_line(int line, int p) { return line * 64 + ((p ^ (line / 2 & 3)) << 4); }
template <class T>
__device__ __forceinline__ int place_at_depth(int depth, int p) {
  return depth * (kTile * static_cast<int>(sizeof(T))) + ((p ^ (depth & 7)) << 4);
}

// A matrix in memory as an operand. Along: line l is row `first + l`, or the row that an index names there, and depth
// its columns. Across: depth d is row `first + d`, and lines are columns.
template <class T>
struct Operand {
  const T* data;
  const int* index;  // along alone: a row of -1 is zeros; null: the row itself
  std::int64_t first;
  int width;               // of a row: columns
  int line, lines, depth;  // the tile's first line (columns, where across), and how many lines and how much depth count
};

// Two pieces of a stage a thread. Steps are loaded in order.
template <class T, bool kAcross>
class Loader;

template <class T>
class Loader<T, false> {
 public:
  __device__ __forceinline__ explicit Loader(const Operand<T>& of) : depth_(threadIdx.x % 4 * kPiece<T>), of_(of) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int line = threadIdx.x / 4 + i * (kTile / 2);
      std::int64_t row = line < of.lines ? of.first + line : -1;
      if (of.index && row >= 0) row = of.index[row];
      line_[i] = row < 0 ? nullptr : of.data + row * of.width;
    }
  }
  __device__ __forceinline__ void load(std::uint32_t to) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool there = line_[i] && depth_ < of_.depth;
      ampere::copy_16(to + place_in_line(threadIdx.x / 4 + i * (kTile / 2), threadIdx.x % 4),
                      there ? line_[i] + depth_ : of_.data, there);
    }
    depth_ += kDepth<T>;
  }

 private:
  const T* line_[2];
  int depth_;
  const Operand<T>& of_;
};

template <class T>
class Loader<T, true> {
 public:
  __device__ __forceinline__ explicit Loader(const Operand<T>& of)
      : depth_(threadIdx.x / kPieces),
        line_(of.line + threadIdx.x % kPieces * kPiece<T>),
        from_(of.data + (of.first + depth_) * of.width + line_),
        of_(of) {}
  __device__ __forceinline__ void load(std::uint32_t to) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool there = depth_ + i * kApart < of_.depth && line_ < of_.lines;
      ampere::copy_16(to + place_at_depth<T>(threadIdx.x / kPieces + i * kApart, threadIdx.x % kPieces),
                      there ? from_ + static_cast<std::int64_t>(i * kApart) * of_.width : of_.data, there);
    }
    depth_ += kDepth<T>;
    from_ += static_cast<std::int64_t>(kDepth<T>) * of_.width;
  }

 private:
  static constexpr int kPieces = kTile / kPiece<T>, kApart = kThreads / kPieces;
  int depth_, line_;
  const T* from_;
  const Operand<T>& of_;
};

// A thread's part of a tile: kRows rows by kRuns runs of kRun neighbouring columns, and how to add a stage to it.
template <class T, bool kLeftAcross, bool kRightAcross>
struct Part;

// Eight warps, two by four, of 64 x 32 each.
template <bool kLeftAcross, bool kRightAcross>
struct Part<bf16, kLeftAcross, kRightAcross> {
  static constexpr int kRows = 8, kRuns = 4, kRun = 2;
  static constexpr int kSharers = 4;  // lanes that hold parts of the same rows
  static constexpr int kShares = 4;   // and groups of such lanes, by share()
  float d[4][4][4] = {};              // 16 rows, 8 columns, what mma gives a lane of them

  static __device__ __forceinline__ int lane() { return threadIdx.x % kWarp; }
  static __device__ __forceinline__ int share() { return threadIdx.x / kWarp % 4; }
  static __device__ __forceinline__ int row_block() { return threadIdx.x / (4 * kWarp) * 64; }
  static __device__ __forceinline__ int row(int i) { return row_block() + i / 2 * 16 + i % 2 * 8 + lane() / 4; }
  static __device__ __forceinline__ int column(int run) { return share() * 32 + run * 8 + lane() % 4 * 2; }
  __device__ __forceinline__ float& at(int i, int run, int c) { return d[i / 2][run][i % 2 * 2 + c]; }

  // 16 lines by 16 of depth: step s of the stage. Matrices in the order lines then depth, or depth then lines.
  template <bool kAcross, bool kLinesFirst>
  static __device__ __forceinline__ void fragment(std::uint32_t operand, int line, int s, unsigned (&r)[4]) {
    const int low = lane() % 8, first = lane() / 8 % 2, second = lane() / 16;
    const int lines = kLinesFirst ? first : second, depth = kLinesFirst ? second : first;
    ampere::load_matrices<kAcross>(operand + (kAcross ? place_at_depth<bf16>(s * 16 + depth * 8 + low, line / 8 + lines)
                                                      : place_in_line(line + lines * 8 + low, s * 2 + depth)),
                                   r);
  }
  __device__ __forceinline__ void add_stage(const unsigned char* stage) {
    const std::uint32_t left = ampere::smem_address(stage), right = left + kOperandBytes;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      unsigned a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) fragment<kLeftAcross, true>(left, row_block() + i * 16, s, a[i]);
#pragma unroll
      for (int j = 0; j < 2; ++j) fragment<kRightAcross, false>(right, share() * 32 + j * 16, s, b[j]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) mma(d[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
};

// 16 x 16 threads of 8 x 8. Lines of a thread: every 16th where depth is along, else two times four neighbours.
template <bool kLeftAcross, bool kRightAcross>
struct Part<float, kLeftAcross, kRightAcross> {
  static constexpr int kRows = 8, kRuns = kRightAcross ? 2 : 8, kRun = 8 / kRuns;
  static constexpr int kSharers = 16, kShares = 1;
  float d[8][8] = {};

  static __device__ __forceinline__ int share() { return 0; }
  template <bool kAcross>
  static __device__ __forceinline__ int line(int thread, int i) {
    return kAcross ? i / 4 * 64 + thread * 4 + i % 4 : thread + i * 16;
  }
  static __device__ __forceinline__ int row(int i) { return line<kLeftAcross>(threadIdx.x / 16, i); }
  static __device__ __forceinline__ int column(int run) { return line<kRightAcross>(threadIdx.x % 16, run * kRun); }
  __device__ __forceinline__ float& at(int i, int run, int c) { return d[i][run * kRun + c]; }

  static __device__ __forceinline__ void load_four(const unsigned char* from, float (&v)[4]) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  }
  // Four of depth of all rows, then the columns one after the other: what is in registers at a time fits in 128.
  __device__ __forceinline__ void add_stage(const unsigned char* stage) {
    const unsigned char *left = stage, *right = stage + kOperandBytes;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      float a[8][4];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float v[4];
        if constexpr (kLeftAcross) {
          load_four(left + place_at_depth<float>(s * 4 + i % 4, i / 4 * 16 + threadIdx.x / 16), v);
#pragma unroll
          for (int c = 0; c < 4; ++c) a[i / 4 * 4 + c][i % 4] = v[c];
        } else {
          load_four(left + place_in_line(row(i), s), a[i]);
        }
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {  // a line, or four lines at a step of depth
        float b[4];
        load_four(right + (kRightAcross ? place_at_depth<float>(s * 4 + j % 4, j / 4 * 16 + threadIdx.x % 16)
                                        : place_in_line(line<false>(threadIdx.x % 16, j), s)),
                  b);
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            float& sum = d[i][kRightAcross ? j / 4 * 4 + c : j];
            sum = fmaf(a[i][kRightAcross ? j % 4 : c], b[c], sum);
          }
      }
    }
  }
};

}  // namespace switchyard::kernels::portable
