#include <algorithm>
#include <numeric>
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

  if (p.tile_expert) {
    for (int e = 0; e < p.experts; ++e)
      std::fill(p.tile_expert + p.offset[e] / p.alignment, p.tile_expert + p.end[e] / p.alignment, e);
  }
  if (p.longest_first) {
    std::iota(p.longest_first, p.longest_first + p.experts, 0);
    std::stable_sort(p.longest_first, p.longest_first + p.experts,
                     [&](int a, int b) { return p.count[a] > p.count[b]; });
  }
  if (p.scheduler) std::fill_n(p.scheduler, 2, 0);

  std::fill_n(p.token_of_row, p.row_capacity, -1);
  std::vector<int> next(p.offset, p.offset + p.experts);
  for (std::int64_t i = 0; i < assignments; ++i) {
    const int e = p.expert[i];
    p.row_of[i] = e < 0 ? -1 : next[e]++;
    if (e >= 0) p.token_of_row[p.row_of[i]] = static_cast<int>(i / p.top_k);
  }
}

template <class T>
void permute_rows_cpu(const PermuteRows<T>& p, Range items) {
  const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(p.width);
  for (std::int64_t i = items.begin * p.top_k; i < std::min(items.end, p.tokens) * p.top_k; ++i) {
    if (p.row_of[i] < 0) continue;
    const T* in = p.rows + i / p.top_k * p.width;
    T* out = p.out + static_cast<std::int64_t>(p.row_of[i]) * p.width;
    std::memcpy(out, in, bytes);
  }
  for (std::int64_t r = items.begin; r < std::min<std::int64_t>(items.end, *p.row_count); ++r) {
    if (p.token_of_row[r] < 0) std::memset(p.out + r * p.width, 0, bytes);
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
      if (empty)
        std::memcpy(out, in, sizeof(T) * static_cast<std::size_t>(p.width));
      else
        each<T>(p.width, [&](auto at) { at.write(out, at(out) + at(in)); });
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
  for (std::int64_t i = 0; i < p.assignments; ++i) {
    p.out[i] = 0;
    for (int part = 0; part < p.parts && p.row_of[i] >= 0; ++part)
      p.out[i] += p.values[part * p.row_capacity + p.row_of[i]];
  }
}

template void permute_rows_cpu(const PermuteRows<float>&, Range);
template void permute_rows_cpu(const PermuteRows<double>&, Range);
template void combine_cpu(const Combine<float>&, Range);
template void combine_cpu(const Combine<double>&, Range);

}  // namespace switchyard::kernels
