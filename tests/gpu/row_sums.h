// A gradient or an addend that comes as rows to be summed (kernels/row_sum.h), and the sum taken on the host.
#pragma once

#include <algorithm>
#include <numeric>

#include "harness.h"
#include "kernels/row_sum.h"

namespace switchyard::gpu_check {

// Rows in no order, and between them some that belong to no token, which hold NaN. Some assignments have none, nor has
// any of the third token.
template <class T>
struct Rows {
  const int top_k;
  const std::vector<int> row_of;
  const Input<T> rows;
  const Buffer<int> device_row_of;
  Values sum;

  Rows(Random& random, int tokens, int top_k, int width)
      : top_k(top_k),
        row_of(placed(random, tokens * top_k, top_k)),
        rows(values(random, capacity(tokens * top_k), width)),
        device_row_of(row_of),
        sum(static_cast<std::size_t>(tokens) * width) {
    for (std::size_t i = 0; i < row_of.size(); ++i)
      for (int j = 0; row_of[i] >= 0 && j < width; ++j)
        sum[i / top_k * width + j] += rows[static_cast<std::size_t>(row_of[i]) * width + j];
  }
  kernels::RowSum<T> of() const { return {rows.get(), device_row_of.get(), top_k}; }

 private:
  static int capacity(int assignments) { return assignments + 5; }

  static std::vector<int> placed(Random& random, int assignments, int top_k) {
    std::vector<int> row(capacity(assignments));
    std::iota(row.begin(), row.end(), 0);
    for (int i = static_cast<int>(row.size()) - 1; i > 0; --i) std::swap(row[i], row[random.below(i + 1)]);
    row.resize(assignments);
    for (int i = 0; i < assignments; ++i)
      if (i % 7 == 0 || i / top_k == 2) row[i] = -1;
    return row;
  }
  Values values(Random& random, int count, int width) const {
    Values all = random.normal(static_cast<std::size_t>(count) * width);
    std::vector<bool> read(count, false);
    for (const int row : row_of)
      if (row >= 0) read[row] = true;
    for (int row = 0; row < count; ++row)
      if (!read[row]) std::fill_n(all.begin() + static_cast<std::size_t>(row) * width, width, std::nan(""));
    return all;
  }
};

}  // namespace switchyard::gpu_check
