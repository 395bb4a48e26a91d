// ops/kernel_rows.h: a RowSum as kernels take it.
#pragma once

#include "kernels/row_sum.h"
#include "ops/launch.h"
#include "ops/row_sum.h"

namespace switchyard::ops {

// For a kernel whose work is of T, as `like` [T, D] is.
template <class T>
kernels::RowSum<T> kernel_rows(const RowSum& rows, const Tensor& like) {
  if (!rows.rows_RD.defined()) return {};
  SWITCHYARD_ASSERT(rows.rows_RD.scalar_type() == like.scalar_type() && rows.rows_RD.is_contiguous() &&
                        rows.rows_RD.size(1) == like.size(1) && rows.row_of_TK.size(0) == like.size(0),
                    "rows are contiguous, of the type and width of what their sum is read beside");
  return {pointer<T>(rows.rows_RD), rows.row_of_TK.data_ptr<int>(), static_cast<int>(rows.row_of_TK.size(1))};
}

}  // namespace switchyard::ops
