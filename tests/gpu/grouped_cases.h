// What the checks of grouped products share: cases, their rows in expert order as kernels/dispatch.h lays them out, and
// values for them.
#pragma once

#include <vector>

#include "harness.h"
#include "kernels/dispatch.h"
#include "kernels/grouped_gemm.h"

namespace switchyard::gpu_check {

enum class Skew { kEven, kSingle, kHalfEmpty, kSomeDropped };

struct GroupedCase {
  const char* name;
  int tokens, experts, top_k, width, hidden, alignment;
  Skew skew = Skew::kEven;
};
inline const std::vector<GroupedCase> kCases = {
    {"whole tiles", 512, 4, 2, 256, 512, 128},
    {"pairs of blocks", 1024, 4, 2, 256, 512, 256},
    {"odd widths and rows", 301, 3, 2, 200, 328, 128},
    {"odd widths, pairs", 301, 3, 2, 136, 72, 256},
    {"tiles of 192", 640, 4, 2, 192, 384, 128},
    {"tiles of 192, pairs", 1300, 2, 2, 384, 192, 256},
    {"one token", 1, 8, 2, 64, 64, 128},
    {"all on one expert", 700, 8, 1, 128, 256, 128, Skew::kSingle},
    {"all on one expert, pairs", 700, 8, 1, 128, 256, 256, Skew::kSingle},
    {"half the experts empty", 900, 16, 2, 128, 192, 128, Skew::kHalfEmpty},
    {"half empty, pairs", 900, 16, 2, 128, 192, 256, Skew::kHalfEmpty},
    {"some dropped", 500, 4, 2, 128, 128, 128, Skew::kSomeDropped},
    {"more tiles than blocks", 3000, 8, 2, 64, 1024, 128},
    {"deep", 512, 2, 1, 2048, 128, 128},
    {"half a tile of gates", 260, 3, 2, 136, 192, 256},
    {"more tiles than blocks, pairs", 2100, 8, 2, 64, 640, 256},
    {"a clipped tile of 256", 301, 3, 2, 136, 456, 128},
    {"more tiles of 192 than blocks", 2200, 8, 2, 72, 960, 256},
};
// Weight gradients of more tiles than blocks, whose experts have an odd number of steps of 64 rows, or none.
inline const std::vector<GroupedCase> kManyExperts = {
    {"three steps or none", 16000, 200, 1, 200, 136, 128, Skew::kHalfEmpty},
    {"three steps or none, single blocks", 16000, 200, 1, 136, 72, 128, Skew::kHalfEmpty},
    {"one step", 400, 400, 1, 136, 72, 128},
};
// And of so many that blocks start apart, nearly all of them empty: so few rows need no room for every expert's
// padding.
inline constexpr std::int64_t kManyTilesRows = 896;
inline const std::vector<GroupedCase> kManyTiles = {
    {"38 tiles a block", 700, 1024, 1, 8, 520, 128, Skew::kSingle},
    {"46 tiles a pair of blocks", 700, 1024, 1, 8, 648, 128, Skew::kSingle},
};

inline std::int64_t capacity_of(const GroupedCase& c) {
  return (static_cast<std::int64_t>(c.tokens) * c.top_k + c.experts * (c.alignment - 1) + c.alignment - 1) /
         c.alignment * c.alignment;
}

struct Plan {
  Buffer<int> count, offset, end, token_of_row, row_of, scratch, tile_expert, longest_first, scheduler;
  std::vector<int> host_count, host_offset, host_token;
  std::int64_t capacity;
  kernels::RowGroups groups;

  Plan(const GroupedCase& c, std::int64_t rows)
      : count(c.experts),
        offset(c.experts + 1),
        end(c.experts),
        token_of_row(rows),
        row_of(static_cast<std::size_t>(c.tokens) * c.top_k),
        scratch(kernels::dispatch_scratch(c.tokens, c.top_k, c.experts)),
        tile_expert(rows / c.alignment),
        longest_first(c.experts),
        scheduler(2),
        capacity(rows),
        groups{offset.get(),    count.get(), tile_expert.get(), longest_first.get(),
               scheduler.get(), c.experts,   c.alignment,       rows} {
    std::vector<int> expert(row_of.size());
    for (std::size_t i = 0; i < expert.size(); ++i) {
      const int even = static_cast<int>((i / c.top_k * 7 + i / 5 % 3 + i % c.top_k) % c.experts);
      expert[i] = c.skew == Skew::kSingle                      ? c.experts / 2
                  : c.skew == Skew::kSomeDropped && i % 5 == 0 ? -1
                  : c.skew == Skew::kHalfEmpty                 ? even / 2 * 2
                                                               : even;
    }
    const Buffer<int> device(expert);
    run_captured([&](Stream s) {
      kernels::dispatch({device.get(), count.get(), offset.get(), end.get(), token_of_row.get(), row_of.get(),
                         scratch.get(), c.tokens, c.top_k, c.experts, c.alignment, capacity, tile_expert.get(),
                         longest_first.get(), scheduler.get()},
                        s);
    });
    host_count = count.download(), host_offset = offset.download(), host_token = token_of_row.download();
  }
  bool scheduler_at_rest() const {
    const std::vector<int> words = scheduler.download();
    return words[0] == 0 && words[1] == 0;
  }
};

// call(expert, row) for every row in use, padding included.
template <class Call>
void each_row(const Plan& plan, Call call) {
  for (std::size_t e = 0; e + 1 < plan.host_offset.size(); ++e)
    for (int row = plan.host_offset[e]; row < plan.host_offset[e + 1]; ++row) call(static_cast<int>(e), row);
}

// Rows past the last offset are neither defined nor compared.
inline Values in_use(const Plan& plan, Values values, int width) {
  values.resize(static_cast<std::size_t>(plan.host_offset.back()) * width);
  return values;
}

// Values of a row tensor with zeros in the padding and NaN behind the last offset.
inline Values row_values(Random& random, const Plan& plan, int width, bool positive = false) {
  Values values = random.normal(static_cast<std::size_t>(plan.capacity) * width);
  for (std::int64_t row = 0; row < plan.capacity; ++row)
    for (int j = 0; j < width; ++j) {
      double& v = values[row * width + j];
      if (positive) v = v > 0 ? v * v : 0;
      if (row >= plan.host_offset.back())
        v = std::nan("");
      else if (plan.host_token[row] < 0)
        v = 0;
    }
  return values;
}

}  // namespace switchyard::gpu_check
