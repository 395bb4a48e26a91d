#include <cmath>

#include "kernels/row_norms.h"

namespace switchyard::kernels {

template <class T>
void row_norms_cpu(const RowNorms<T>& p, Range tokens) {
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const T* x = p.x + t * p.width;
    double sum = 0;
    for (int d = 0; d < p.width; ++d) sum += static_cast<double>(x[d]) * static_cast<double>(x[d]);
    p.norm[t] = static_cast<float>(std::sqrt(sum));
  }
}

template void row_norms_cpu(const RowNorms<float>&, Range);
template void row_norms_cpu(const RowNorms<double>&, Range);

}  // namespace switchyard::kernels
