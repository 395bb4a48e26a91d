// kernels/matrix_product.h: products of matrices on the CPU, fp32 or fp64. Many of them, of any sizes, are cut into
// pieces that threads share, which one call of a BLAS for each cannot do; every piece runs at the speed of the
// registers.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// Rows of contiguous values, `stride` apart, all of them or those that an index names.
template <class T>
struct MatrixRows {
  const T* data;
  std::int64_t stride;
  const int* index = nullptr;  // row i is row index[i] of data; null: row i
  bool turned = false;         // the product takes the transpose
};

// c = a b or, with `add`, c += a b.
template <class T>
struct MatrixProduct {
  MatrixRows<T> a;  // [rows, inner]; turned: [inner, rows] as it lies
  MatrixRows<T> b;  // [inner, columns]; turned: [columns, inner] as it lies
  T* c;             // [rows, columns], rows c_stride apart
  std::int64_t c_stride;
  std::int64_t rows, columns, inner;
  bool add = false;
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
