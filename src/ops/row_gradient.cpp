#include "ops/row_gradient.h"

#include "ops/add_norm_router.h"

namespace switchyard::ops {

c10::intrusive_ptr<RowGradient> row_gradient_before([[maybe_unused]] const Tensor& x_TD) {
#ifdef SWITCHYARD_WITH_CUDA
  return row_gradient_of_norm(x_TD);
#else
  return {};
#endif
}

}  // namespace switchyard::ops
