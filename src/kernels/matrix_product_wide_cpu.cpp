#include "kernels/matrix_product_wide.h"
#include "kernels/matrix_tiles.h"

namespace switchyard::kernels {

template <class T>
void pack_panels_wide(const MatrixProduct<T>& p, T* packed, Range panels) {
  Tiles<T, 64>::pack_panels(p, packed, panels);
}
template <class T>
void matrix_product_wide(const MatrixProduct<T>& p, const T* packed, Range blocks) {
  Tiles<T, 64>::multiply(p, packed, blocks);
}

template void pack_panels_wide(const MatrixProduct<float>&, float*, Range);
template void pack_panels_wide(const MatrixProduct<double>&, double*, Range);
template void matrix_product_wide(const MatrixProduct<float>&, const float*, Range);
template void matrix_product_wide(const MatrixProduct<double>&, const double*, Range);

}  // namespace switchyard::kernels
