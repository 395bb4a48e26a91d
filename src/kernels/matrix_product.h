// kernels/matrix_product.h: products of matrices on the CPU, fp32 or fp64. Many of them, of any sizes, are cut into
// pieces that threads share, which one call of a BLAS for each cannot do; every piece runs at the speed of the
// registers.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// c = a b or, with `add`, c += a b. Element (i, l) of a is a[i * a_row + l * a_inner] and (l, j) of b is
// b[l * b_inner + j * b_column], so that either may be a transposed view; one stride of each should be 1.
template <class T>
struct MatrixProduct {
  const T* a;  // [rows, inner]
  std::int64_t a_row, a_inner;
  const T* b;  // [inner, columns]
  std::int64_t b_inner, b_column;
  T* c;  // [rows, columns], rows c_row apart
  std::int64_t c_row;
  std::int64_t rows, columns, inner;
  bool add;
};

// How a product is cut on this processor. First b is copied panel by panel into the order in which tiles read it:
// panels(columns) of panel_columns * inner values each. Then each block of block_rows rows is a piece of work of its
// own. Every element is summed in an order that `inner` alone fixes: results repeat bitwise, whatever threads there
// are.
struct MatrixTiles {
  int panel_columns, block_rows;
  std::int64_t panels(std::int64_t columns) const { return (columns + panel_columns - 1) / panel_columns; }
  std::int64_t blocks(std::int64_t rows) const { return (rows + block_rows - 1) / block_rows; }
};
template <class T>
MatrixTiles matrix_tiles();

// Panels [begin, end) of b into `packed`, which holds all panels of the product.
template <class T>
void pack_panels_cpu(const MatrixProduct<T>&, T* packed, Range panels);
// Blocks of rows [begin, end) of c.
template <class T>
void matrix_product_cpu(const MatrixProduct<T>&, const T* packed, Range blocks);

}  // namespace switchyard::kernels
