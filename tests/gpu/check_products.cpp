// symmetric_product: batched fp16 products, whole and mirrored.
#include "harness.h"
#include "kernels/symmetric_product.h"

namespace switchyard::gpu_check {
namespace {

using kernels::kProductSquare;

struct ProductCase {
  const char* name;
  int count, m, n, k;
  bool a_turned, b_turned, symmetric, with_c;
  float scale, identity;
  bool same = false, backward = false;  // same: B is A, turned
};
const std::vector<ProductCase> kProductCases = {
    {"one tile", 1, 128, 128, 64, false, true, false, false, 1, 0},
    {"smallest", 2, 8, 8, 8, false, true, true, false, 1, 0},
    {"smallest, across", 2, 8, 8, 8, true, false, true, false, 1, 0},
    {"X X', odd sizes", 3, 200, 200, 328, false, true, true, false, 1, 0},
    {"X' X, odd sizes", 3, 200, 200, 328, true, false, true, false, 1, 0},
    {"X' X, more than a tile", 2, 264, 264, 136, true, false, true, false, 1, 0},
    {"polynomial", 3, 392, 392, 392, false, true, true, true, -0.5f, 3},
    {"polynomial, a tile and a bit", 40, 136, 136, 136, false, true, true, true, 0.5f, 0.25f},
    {"Q X", 3, 200, 328, 200, false, false, false, false, 1, 0},
    {"Q X, few rows", 5, 8, 776, 8, false, false, false, false, 1, 0},
    {"X Q", 3, 328, 200, 200, false, true, false, false, 1, 0},
    {"X Q with C", 2, 328, 72, 72, false, true, false, true, 2, 1},
    {"more tiles than blocks", 300, 136, 64, 72, false, false, false, false, 1, 0},
    {"large", 1, 768, 768, 1536, true, false, true, false, 1, 0},
    // Tiles of 256, pieces of 64, on the diagonal and off it.
    {"X X', one full tile", 2, 256, 256, 64, false, true, true, false, 1, 0, true},
    {"X X', a piece more than a tile", 3, 320, 320, 200, false, true, true, false, 1, 0, true},
    {"X X', two tiles", 2, 512, 512, 128, false, true, true, false, 1, 0},
    {"X X', two tiles, same", 2, 512, 512, 128, false, true, true, false, 1, 0, true, true},
    {"X' X, two tiles, same", 2, 512, 512, 136, true, false, true, false, 1, 0, true},
    {"X' X, one piece", 5, 64, 64, 72, true, false, true, false, 1, 0, true},
    {"polynomial, two tiles and a bit", 2, 520, 520, 520, false, true, true, true, -0.5f, 3, true},
    {"polynomial, three pieces", 3, 192, 192, 192, false, true, true, true, -0.5f, 3, true, true},
    {"polynomial, one row of squares", 90, 64, 64, 64, false, true, true, true, 0.5f, 3, true},
    {"Q X, two tiles", 2, 512, 768, 512, false, false, false, false, 1, 0, false, true},
    {"X Q with C, edges of every kind", 2, 264, 584, 264, false, true, false, true, 2, 1},
    {"more tiles than clusters, with C", 50, 264, 264, 72, false, true, true, true, 1, 1, true, true},
};

// The transpose of each of a batch of [rows, columns] matrices.
Values turned(const Values& values, int count, int rows, int columns) {
  Values result(values.size());
  for (int i = 0; i < count; ++i)
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < columns; ++c)
        result[(static_cast<std::size_t>(i) * columns + c) * rows + r] =
            values[(static_cast<std::size_t>(i) * rows + r) * columns + c];
  return result;
}

// Row i of A and column j of B, from A [m, k] and B' [n, k].
Values products(const ProductCase& c, const Values& a, const Values& b) {
  Values out(static_cast<std::size_t>(c.count) * c.m * c.n);
  for (int matrix = 0; matrix < c.count; ++matrix)
    for (int i = 0; i < c.m; ++i)
      for (int j = 0; j < c.n; ++j) {
        const double* row = &a[(static_cast<std::size_t>(matrix) * c.m + i) * c.k];
        const double* column = &b[(static_cast<std::size_t>(matrix) * c.n + j) * c.k];
        double sum = 0;
        for (int k = 0; k < c.k; ++k) sum += row[k] * column[k];
        out[(static_cast<std::size_t>(matrix) * c.m + i) * c.n + j] = sum;
      }
  return out;
}

void check_product(Report& report, const ProductCase& c) {
  Random random(67);
  const std::size_t a_size = static_cast<std::size_t>(c.count) * c.m * c.k,
                    b_size = static_cast<std::size_t>(c.count) * c.k * c.n,
                    size = static_cast<std::size_t>(c.count) * c.m * c.n;
  const double scale = 1 / std::sqrt(std::sqrt(static_cast<double>(c.k)));
  // Independent operands also where the result is called symmetric: it then shows which squares were computed.
  const Input<fp16> a(random.normal(a_size, scale)), other(random.normal(b_size, scale)), terms(random.normal(size));
  const Input<fp16>& b = c.same ? a : other;
  Buffer<fp16> out(size);
  Buffer<int> scheduler(std::vector<int>{0, 0});
  const float add = c.with_c ? 0.75f : 0;
  run_captured([&](Stream s) {
    kernels::symmetric_product(
        {a.get(), b.get(), c.with_c ? terms.get() : nullptr, out.get(), c.count, c.m, c.n, c.k, c.a_turned, c.b_turned,
         c.symmetric, c.scale, add, c.identity, scheduler.get(), c.backward},
        s);
  });
  Values want = products(c, c.a_turned ? turned(a.host, c.count, c.k, c.m) : a.host,
                         c.b_turned ? b.host : turned(b.host, c.count, c.k, c.n));
  for (std::size_t at = 0; at < size; ++at) {
    const std::size_t i = at / c.n % c.m, j = at % c.n;
    want[at] = c.scale * want[at] + add * terms[at] + (i == j ? c.identity : 0);
  }
  for (std::size_t at = 0; at < size && c.symmetric; ++at) {
    const std::size_t matrix = at / c.n / c.m, i = at / c.n % c.m, j = at % c.n;
    if (i / kProductSquare < j / kProductSquare) want[at] = want[(matrix * c.m + j) * c.n + i];
  }
  report.compare("symmetric_product", c.name, values_of(out), want, {1.0 / 1000, 2e-5 * std::sqrt(c.k) * scale});
  report.expect("symmetric_product", std::string(c.name) + ": writes stay inside", out.guard_intact());
  report.expect("symmetric_product", std::string(c.name) + ": the scheduler is left at zero",
                scheduler.guard_intact() && scheduler.download() == std::vector<int>{0, 0});
}

}  // namespace

void check_products(Report& report) {
  for (const ProductCase& c : kProductCases) check_product(report, c);
}

}  // namespace switchyard::gpu_check
