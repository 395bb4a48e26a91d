// Products of matrices on the CPU against a plain loop: every layout, sizes around the tiles, and both register widths.
#include "kernels/matrix_product.h"

#include "kernels/matrix_tiles.h"
#include "kernels_testing.h"

namespace switchyard::kernels {
namespace {

struct Case {
  std::int64_t rows, columns, inner;
  bool a_turned, b_turned, add, indexed;
};
std::vector<Case> cases() {
  std::vector<Case> all;
  const std::int64_t sizes[][3] = {{1, 1, 1},     {1, 64, 3},    {12, 32, 256}, {6, 16, 4},     {96, 128, 64},
                                   {97, 33, 257}, {13, 31, 700}, {200, 96, 1},  {101, 256, 515}};
  for (const auto& size : sizes)
    for (int bits = 0; bits < 16; ++bits)
      all.push_back({size[0], size[1], size[2], (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0});
  return all;
}
std::string describe(const Case& c) {
  return std::to_string(c.rows) + " x " + std::to_string(c.columns) + " over " + std::to_string(c.inner) +
         (c.a_turned ? ", a turned" : "") + (c.b_turned ? ", b turned" : "") + (c.add ? ", added" : "") +
         (c.indexed ? ", rows by index" : "");
}

template <class T>
struct Problem {
  explicit Problem(const Case& c)
      : a_index(index_of(c.a_turned ? c.inner : c.rows)),
        b_index(index_of(c.b_turned ? c.columns : c.inner)),
        a(normal<T>(c.rows * c.inner, 1)),
        b(normal<T>(c.inner * c.columns, 2)),
        c_before(c.add ? normal<T>(c.rows * row_stride(c), 3) : unwritten<T>(c.rows * row_stride(c))),
        c_after(c_before),
        product{{a.data(), c.a_turned ? c.rows : c.inner, c.indexed ? a_index.data() : nullptr, c.a_turned},
                {b.data(), c.b_turned ? c.inner : c.columns, c.indexed ? b_index.data() : nullptr, c.b_turned},
                c_after.data(),
                row_stride(c),
                c.rows,
                c.columns,
                c.inner,
                c.add} {}
  static std::int64_t row_stride(const Case& c) { return c.columns + 3; }

  std::vector<T> expected() const {
    std::vector<T> result = c_before;
    const MatrixProduct<T>& p = product;
    for (std::int64_t i = 0; i < p.rows; ++i) {
      for (std::int64_t j = 0; j < p.columns; ++j) {
        double sum = p.add ? static_cast<double>(c_before[i * p.c_stride + j]) : 0;
        for (std::int64_t l = 0; l < p.inner; ++l) sum += at(p.a, i, l) * at(p.b, l, j);
        result[i * p.c_stride + j] = static_cast<T>(sum);
      }
    }
    return result;
  }

  static double at(const MatrixRows<T>& m, std::int64_t i, std::int64_t j) {
    if (m.turned) std::swap(i, j);
    return static_cast<double>(m.data[(m.index ? m.index[i] : i) * m.stride + j]);
  }
  // Rows in another order, the first one twice.
  static std::vector<int> index_of(std::int64_t rows) {
    std::vector<int> index(static_cast<std::size_t>(rows));
    for (std::int64_t i = 0; i < rows; ++i) index[i] = static_cast<int>((rows - i) % rows);
    index.back() = index.front();
    return index;
  }

  std::vector<int> a_index, b_index;
  std::vector<T> a, b, c_before, c_after;
  MatrixProduct<T> product;
};

template <class T>
class MatrixProducts : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(MatrixProducts, Types);

TYPED_TEST(MatrixProducts, MatchAPlainLoopAndTouchNothingElse) {
  using T = TypeParam;
  const MatrixTiles tiles = matrix_tiles<T>();
  for (const Case& c : cases()) {
    SCOPED_TRACE(describe(c));
    Problem<T> problem(c);
    std::vector<T> packed = unwritten<T>(tiles.panels(c.columns) * tiles.panel_columns * c.inner);
    for (std::int64_t j = 0; j < tiles.panels(c.columns); ++j)  // in pieces, as threads take them
      pack_panels_cpu(problem.product, packed.data(), Range{j, j + 1});
    for (std::int64_t i = tiles.blocks(c.rows); i-- > 0;)
      matrix_product_cpu(problem.product, packed.data(), Range{i, i + 1});
    EXPECT_CLOSE(problem.c_after, problem.expected(), sizeof(T) == 4 ? 3e-5 : 1e-12);
  }
}

// The form for narrow registers also where this processor takes the wide one.
TYPED_TEST(MatrixProducts, NarrowRegistersGiveTheSame) {
  using T = TypeParam;
  using Narrow = Tiles<T, 32>;
  for (const Case& c : cases()) {
    SCOPED_TRACE(describe(c));
    Problem<T> problem(c);
    const std::int64_t panels = (c.columns + Narrow::kColumns - 1) / Narrow::kColumns;
    std::vector<T> packed = unwritten<T>(panels * Narrow::kColumns * c.inner);
    Narrow::pack_panels(problem.product, packed.data(), Range{0, panels});
    Narrow::multiply(problem.product, packed.data(), Range{0, (c.rows + Narrow::kBlockRows - 1) / Narrow::kBlockRows});
    EXPECT_CLOSE(problem.c_after, problem.expected(), sizeof(T) == 4 ? 3e-5 : 1e-12);
  }
}

}  // namespace
}  // namespace switchyard::kernels
