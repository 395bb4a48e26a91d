// kernels/matrix_product_wide.h: kernels/matrix_product.h for processors with 64-byte registers (AVX-512); its .cpp
// file alone is compiled for them.
#pragma once

#include "kernels/matrix_product.h"

namespace switchyard::kernels {

template <class T>
void pack_panels_wide(const MatrixProduct<T>&, T* packed, Range panels);
template <class T>
void matrix_product_wide(const MatrixProduct<T>&, const T* packed, Range blocks);

}  // namespace switchyard::kernels
