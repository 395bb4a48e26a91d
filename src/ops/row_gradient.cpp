#include "ops/row_gradient.h"

#include "ops/add_norm_router.h"
#include "ops/router_scores.h"

namespace switchyard::ops {

c10::intrusive_ptr<RowGradient> row_gradient_before(const Tensor& x_TD) {
#ifdef SWITCHYARD_WITH_CUDA
  if (auto found = row_gradient_of_norm(x_TD)) return found;
#endif
  return row_gradient_of_router(x_TD);
}

}  // namespace switchyard::ops
