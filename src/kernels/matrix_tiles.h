// kernels/matrix_tiles.h: the arithmetic of kernels/matrix_product.h for registers of a given width. For the *_cpu.cpp
// files that compile it for one kind of processor each; all is inline there, as in vector_math.h.
//
// A tile of c stays in registers while l runs over a piece of the inner dimension: two vectors of b times kRows single
// values of a. Both come from copies in just that order: a panel of b stays in the first cache while a block of a
// passes from the second.
#pragma once

#include "kernels/matrix_product.h"
#include "kernels/vector_math.h"

namespace switchyard::kernels {

template <class T, int kBytes>
struct Tiles {
  typedef T Wide __attribute__((vector_size(kBytes)));
  static constexpr int kLanesWide = kBytes / static_cast<int>(sizeof(T));
  static constexpr int kRows = kBytes == 64 ? 12 : 6;  // 2 kRows sums and what multiplies them fit the registers
  static constexpr int kColumns = 2 * kLanesWide;
  static constexpr int kBlockRows = 96;
  static constexpr std::int64_t kInner = 512;  // at most, of a panel at a time

  static SWITCHYARD_INLINE void pack_panels(const MatrixProduct<T>& p, T* packed, Range panels) {
    const std::int64_t first = panels.begin * kColumns, end = panels.end * kColumns;
    interleave<kColumns>(p.b, !p.b.turned, first, (end < p.columns ? end : p.columns) - first, 0, p.inner,
                         packed + first * p.inner);
  }

  static SWITCHYARD_INLINE void multiply(const MatrixProduct<T>& p, const T* packed, Range blocks) {
    alignas(64) T rows_of_a[kBlockRows * kInner];
    const std::int64_t pieces = (p.inner + kInner - 1) / kInner, piece = pieces ? (p.inner + pieces - 1) / pieces : 0;
    for (std::int64_t block = blocks.begin; block < blocks.end; ++block) {
      const std::int64_t first = block * kBlockRows;
      const int rows = at_most<kBlockRows>(p.rows - first);
      for (std::int64_t l = 0; l < p.inner; l += piece) {
        const std::int64_t count = l + piece < p.inner ? piece : p.inner - l;
        interleave<kRows>(p.a, p.a.turned, first, rows, l, count, rows_of_a);
        for (std::int64_t j = 0; j < p.columns; j += kColumns)
          for (int i = 0; i < rows; i += kRows)
            tile(rows_of_a + i * count, packed + j * p.inner + l * kColumns, count, p.c + (first + i) * p.c_stride + j,
                 p.c_stride, at_most<kRows>(rows - i), at_most<kColumns>(p.columns - j), p.add || l > 0);
      }
    }
  }

 private:
  static SWITCHYARD_INLINE const T* row(const MatrixRows<T>& m, std::int64_t i) {
    return m.data + (m.index ? m.index[i] : i) * m.stride;
  }

  // `lines` lines of m from `first` on, values [begin, begin + count) of each, in panels of kWidth lines side by side:
  // to[(panel * count + l) * kWidth + w] is value begin + l of line first + panel * kWidth + w, zeros from `lines` on.
  // Lines are m's rows or its columns.
  template <int kWidth>
  static SWITCHYARD_INLINE void interleave(const MatrixRows<T>& m, bool columns, std::int64_t first, std::int64_t lines,
                                           std::int64_t begin, std::int64_t count, T* to) {
    if (columns) return interleave_columns<kWidth>(m, first, lines, begin, count, to);
    for (std::int64_t i = 0; i < lines; i += kWidth)
      interleave_rows<kWidth>(m, first + i, at_most<kWidth>(lines - i), begin, count, to + i * count);
  }

  // One row of m after the other, through several panels: its part is read as it lies. Through all panels of a wide
  // matrix it would write to more pages than the processor keeps at hand.
  template <int kWidth>
  static SWITCHYARD_INLINE void interleave_columns(const MatrixRows<T>& m, std::int64_t first, std::int64_t lines,
                                                   std::int64_t begin, std::int64_t count, T* to) {
    constexpr std::int64_t kLines = 128 / kWidth * kWidth;
    for (std::int64_t i = 0; i < lines; i += kLines)
      interleave_few_columns<kWidth>(m, first + i, at_most<kLines>(lines - i), begin, count, to + i * count);
  }

  template <int kWidth>
  static SWITCHYARD_INLINE void interleave_few_columns(const MatrixRows<T>& m, std::int64_t first, int lines,
                                                       std::int64_t begin, std::int64_t count, T* to) {
    constexpr std::int64_t kAhead = 8;  // rows, for the processor does not foresee where they lie
    constexpr int kCacheLine = 64 / sizeof(T);
    const int whole = lines / kWidth * kWidth;
    for (std::int64_t l = 0; l < count; ++l, to += kWidth) {
      if (l + kAhead < count) {
        const T* next = row(m, begin + l + kAhead) + first;
        for (int i = 0; i < lines; i += kCacheLine) __builtin_prefetch(next + i);
      }
      const T* from = row(m, begin + l) + first;
      for (int i = 0; i < whole; i += kWidth) std::memcpy(to + i * count, from + i, kWidth * sizeof(T));
      for (int w = 0; whole < lines && w < kWidth; ++w)
        to[whole * count + w] = whole + w < lines ? from[whole + w] : T(0);
    }
  }

  template <int kWidth>
  static SWITCHYARD_INLINE void interleave_rows(const MatrixRows<T>& m, std::int64_t first, int lines,
                                                std::int64_t begin, std::int64_t count, T* to) {
    const T* line[kWidth];
    for (int w = 0; w < kWidth; ++w) line[w] = w < lines ? row(m, first + w) + begin : nullptr;
    std::int64_t l = 0;
    if (lines == kWidth) {
      constexpr int kTurned = kWidth % 4 == 0 ? 4 : 2;
      constexpr std::int64_t kCacheLine = 64 / sizeof(T);
      for (; l + 4 <= count; l += kCacheLine) {  // a cache line of few rows at a time, so that none is fetched twice
        const std::int64_t end = l + kCacheLine < count ? l + kCacheLine : count / 4 * 4;
        for (int w = 0; w < kWidth; w += kTurned)
          for (std::int64_t i = l; i < end; i += 4) turn<kTurned, kWidth>(line + w, i, to + i * kWidth + w);
      }
      l = count / 4 * 4;
    }
    for (; l < count; ++l)
      for (int w = 0; w < kWidth; ++w) to[l * kWidth + w] = w < lines ? line[w][l] : T(0);
  }

  template <int kMost>
  static SWITCHYARD_INLINE int at_most(std::int64_t n) {
    return n < kMost ? static_cast<int>(n) : kMost;
  }

  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  typedef T Two __attribute__((vector_size(2 * sizeof(T))));

  // Values [i, i + 4) of four lines, or of two, turned.
  template <int kLines, int kWidth>
  static SWITCHYARD_INLINE void turn(const T* const* line, std::int64_t i, T* to) {
    const Four a = load<Four>(line[0] + i), b = load<Four>(line[1] + i);
    if constexpr (kLines == 2) {
      const Two turned[4] = {__builtin_shufflevector(a, b, 0, 4), __builtin_shufflevector(a, b, 1, 5),
                             __builtin_shufflevector(a, b, 2, 6), __builtin_shufflevector(a, b, 3, 7)};
      for (int l = 0; l < 4; ++l) std::memcpy(to + l * kWidth, &turned[l], sizeof(Two));
    } else {
      const Four c = load<Four>(line[2] + i), d = load<Four>(line[3] + i);
      const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      const Four turned[4] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                              __builtin_shufflevector(ab2, cd2, 0, 1, 4, 5),
                              __builtin_shufflevector(ab2, cd2, 2, 3, 6, 7)};
      for (int l = 0; l < 4; ++l) std::memcpy(to + l * kWidth, &turned[l], sizeof(Four));
    }
  }

  // The last rows of a matrix take a tile of a third or two, if that is enough.
  static SWITCHYARD_INLINE void tile(const T* a, const T* b, std::int64_t inner, T* c, std::int64_t c_row, int rows,
                                     int columns, bool add) {
    if (rows > kRows / 3 * 2) return tile_of<kRows>(a, b, inner, c, c_row, rows, columns, add);
    if (rows > kRows / 3) return tile_of<kRows / 3 * 2>(a, b, inner, c, c_row, rows, columns, add);
    return tile_of<kRows / 3>(a, b, inner, c, c_row, rows, columns, add);
  }

  template <int kHeight>
  static SWITCHYARD_INLINE void tile_of(const T* a, const T* b, std::int64_t inner, T* c, std::int64_t c_row, int rows,
                                        int columns, bool add) {
    const bool whole = rows == kHeight && columns == kColumns;
    if (whole) {  // the result's lines arrive while the products run
#pragma GCC unroll 12
      for (int i = 0; i < kHeight; ++i) {
        __builtin_prefetch(c + i * c_row, 1);
        __builtin_prefetch(c + i * c_row + kLanesWide, 1);
      }
    }
    Wide sum[kHeight][2] = {};
    for (std::int64_t l = 0; l < inner; ++l) {
      const T* const values = b + l * kColumns;
      const Wide left = load<Wide>(values), right = load<Wide>(values + kLanesWide);
      __builtin_prefetch(values + inner * kColumns, 0, 2);  // the next panel, into the second cache
      __builtin_prefetch(values + inner * kColumns + kLanesWide, 0, 2);
#pragma GCC unroll 12
      for (int i = 0; i < kHeight; ++i) {
        sum[i][0] += a[l * kRows + i] * left;
        sum[i][1] += a[l * kRows + i] * right;
      }
    }
    if (whole) {
#pragma GCC unroll 12
      for (int i = 0; i < kHeight; ++i) {
        for (int half = 0; half < 2; ++half) {
          T* to = c + i * c_row + half * kLanesWide;
          const Wide value = add ? load<Wide>(to) + sum[i][half] : sum[i][half];
          std::memcpy(to, &value, sizeof value);
        }
      }
      return;
    }
    alignas(64) T edge[kHeight * kColumns];
    std::memcpy(edge, sum, sizeof edge);
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < columns; ++j) {
        T& to = c[i * c_row + j];
        to = (add ? to : T(0)) + edge[i * kColumns + j];
      }
    }
  }
};

}  // namespace switchyard::kernels
