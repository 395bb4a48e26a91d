#include "kernels/matrix_product_wide.h"
#include "kernels/matrix_tiles.h"

namespace switchyard::kernels {
namespace {

bool has_wide_registers() {
#ifdef __x86_64__
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  return has;
#else
  return false;
#endif
}

template <class T>
using Narrow = Tiles<T, 32>;

}  // namespace

template <class T>
MatrixTiles matrix_tiles() {
  return has_wide_registers() ? MatrixTiles{Tiles<T, 64>::kColumns, Tiles<T, 64>::kBlockRows}
                              : MatrixTiles{Narrow<T>::kColumns, Narrow<T>::kBlockRows};
}

template <class T>
void pack_panels_cpu(const MatrixProduct<T>& p, T* packed, Range panels) {
  if (has_wide_registers()) return pack_panels_wide(p, packed, panels);
  Narrow<T>::pack_panels(p, packed, panels);
}

template <class T>
void matrix_product_cpu(const MatrixProduct<T>& p, const T* packed, Range blocks) {
  if (has_wide_registers()) return matrix_product_wide(p, packed, blocks);
  Narrow<T>::multiply(p, packed, blocks);
}

template MatrixTiles matrix_tiles<float>();
template MatrixTiles matrix_tiles<double>();
template void pack_panels_cpu(const MatrixProduct<float>&, float*, Range);
template void pack_panels_cpu(const MatrixProduct<double>&, double*, Range);
template void matrix_product_cpu(const MatrixProduct<float>&, const float*, Range);
template void matrix_product_cpu(const MatrixProduct<double>&, const double*, Range);

}  // namespace switchyard::kernels
