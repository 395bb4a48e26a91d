#include "ops/mix.h"

namespace switchyard::ops {

// A share of shape [1] is no scalar to torch: products with it are of the wider type.
Tensor mix(const Tensor& x_TD, const Tensor& y_TD, const Tensor& share) {
  return (x_TD * share + y_TD * (1 - share)).to(x_TD.scalar_type());
}

Tensor scaled(const Tensor& x_TD, const Tensor& share) { return (x_TD * share).to(x_TD.scalar_type()); }

}  // namespace switchyard::ops
