#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/dispatch.h"
#include "kernels/vector_math.h"

namespace switchyard::kernels {

void dispatch_cpu(const Dispatch& p) {
  const std::int64_t assignments = p.tokens * p.top_k;
  std::fill_n(p.count, p.experts, 0);
  for (std::int64_t i = 0; i < assignments; ++i) {
    if (p.expert[i] >= 0) ++p.count[p.expert[i]];
  }
  p.offset[0] = 0;
  for (int e = 0; e < p.experts; ++e) {
    p.offset[e + 1] = p.offset[e] + (p.count[e] + p.alignment - 1) / p.alignment * p.alignment;
    p.end[e] = p.offset[e + 1];
  }
  SWITCHYARD_ASSERT(p.offset[p.experts] <= p.row_capacity, "dispatch: the padded rows exceed row_capacity");

  std::fill_n(p.token_of_row, p.row_capacity, -1);
  std::vector<int> next(p.offset, p.offset + p.experts);
  for (std::int64_t i = 0; i < assignments; ++i) {
    const int e = p.expert[i];
    p.row_of[i] = e < 0 ? -1 : next[e]++;
    if (e >= 0) p.token_of_row[p.row_of[i]] = static_cast<int>(i / p.top_k);
  }
}

template <class T>
void gather_rows_cpu(const GatherRows<T>& p, Range rows) {
  const std::int64_t count = p.row_count ? *p.row_count : p.row_capacity;
  const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(p.width);
  for (std::int64_t r = rows.begin; r < std::min(rows.end, count); ++r) {
    const std::int64_t token = p.token_of_row[r];
    if (token < 0) {
      std::memset(p.out + r * p.width, 0, bytes);
    } else {
      std::memcpy(p.out + r * p.width, p.rows + token * p.width, bytes);
    }
  }
}

template <class T>
void combine_cpu(const Combine<T>& p, Range tokens) {
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    T* out = p.out + t * p.width;
    bool empty = true;
    for (int k = 0; k < p.top_k; ++k) {
      const std::int64_t row = p.row_of[t * p.top_k + k];
      if (row < 0) continue;
      const T* in = p.rows + row * p.width;
      const T weight = p.weight ? static_cast<T>(p.weight[t * p.top_k + k]) : T(1);
      if (empty) {
        each<T>(p.width, [&](auto at) { at.write(out, at.all(weight) * at(in)); });
      } else {
        each<T>(p.width, [&](auto at) { at.write(out, at(out) + at.all(weight) * at(in)); });
      }
      empty = false;
    }
    if (empty) std::memset(out, 0, sizeof(T) * static_cast<std::size_t>(p.width));
  }
}

void values_to_rows_cpu(const AssignmentValues& p) {
  for (std::int64_t r = 0; r < p.row_capacity; ++r) {
    if (p.token_of_row[r] < 0) p.out[r] = 0;
  }
  for (std::int64_t i = 0; i < p.assignments; ++i) {
    if (p.row_of[i] >= 0) p.out[p.row_of[i]] = p.values[i];
  }
}

void values_from_rows_cpu(const AssignmentValues& p) {
  for (std::int64_t i = 0; i < p.assignments; ++i) p.out[i] = p.row_of[i] < 0 ? 0.0f : p.values[p.row_of[i]];
}

template void gather_rows_cpu(const GatherRows<float>&, Range);
template void gather_rows_cpu(const GatherRows<double>&, Range);
template void combine_cpu(const Combine<float>&, Range);
template void combine_cpu(const Combine<double>&, Range);

}  // namespace switchyard::kernels
