// product_chain: batched fp16 products, whole and symmetric, one by one and in chains.
#include "harness.h"
#include "kernels/product_chain.h"

namespace switchyard::gpu_check {
namespace {

using kernels::kProductTile;
using Lies = kernels::ProductOperand;

struct ProductCase {
  const char* name;
  int count, m, n, k;
  Lies a_lies, b_lies;
  bool symmetric, with_c;
  float scale, identity;
  bool same = false;  // B is A's memory
};
const std::vector<ProductCase> kProductCases = {
    {"one tile", 1, 128, 128, 64, Lies::kStraight, Lies::kTurned, false, false, 1, 0},
    {"smallest", 2, 8, 8, 8, Lies::kStraight, Lies::kTurned, true, false, 1, 0},
    {"smallest, across", 2, 8, 8, 8, Lies::kTurned, Lies::kStraight, true, false, 1, 0},
    {"X X', odd sizes", 3, 200, 200, 328, Lies::kStraight, Lies::kTurned, true, false, 1, 0},
    {"X' X, odd sizes", 3, 200, 200, 328, Lies::kTurned, Lies::kStraight, true, false, 1, 0},
    {"X' X, more than a tile", 2, 264, 264, 136, Lies::kTurned, Lies::kStraight, true, false, 1, 0},
    {"polynomial", 3, 392, 392, 392, Lies::kSymmetric, Lies::kSymmetric, true, true, -0.5f, 3},
    {"polynomial, a tile and a bit", 40, 136, 136, 136, Lies::kSymmetric, Lies::kSymmetric, true, true, 0.5f, 0.25f},
    {"Q X", 3, 200, 328, 200, Lies::kSymmetric, Lies::kStraight, false, false, 1, 0},
    {"Q X, few rows", 5, 8, 776, 8, Lies::kSymmetric, Lies::kStraight, false, false, 1, 0},
    {"X Q", 3, 328, 200, 200, Lies::kStraight, Lies::kSymmetric, false, false, 1, 0},
    {"X Q with C", 2, 328, 72, 72, Lies::kStraight, Lies::kSymmetric, false, true, 2, 1},
    {"more tiles than blocks", 300, 136, 64, 72, Lies::kStraight, Lies::kStraight, false, false, 1, 0},
    {"large", 1, 768, 768, 1536, Lies::kTurned, Lies::kStraight, true, false, 1, 0},
    // Tiles of 256, pieces of 64, on the diagonal and off it.
    {"X X', one full tile", 2, 256, 256, 64, Lies::kStraight, Lies::kTurned, true, false, 1, 0, true},
    {"X X', a piece more than a tile", 3, 320, 320, 200, Lies::kStraight, Lies::kTurned, true, false, 1, 0, true},
    {"X X', two tiles", 2, 512, 512, 128, Lies::kStraight, Lies::kTurned, true, false, 1, 0},
    {"X X', two tiles, same", 2, 512, 512, 128, Lies::kStraight, Lies::kTurned, true, false, 1, 0, true},
    {"X' X, two tiles, same", 2, 512, 512, 136, Lies::kTurned, Lies::kStraight, true, false, 1, 0, true},
    {"X' X, one piece", 5, 64, 64, 72, Lies::kTurned, Lies::kStraight, true, false, 1, 0, true},
    {"polynomial, two tiles and a bit", 2, 520, 520, 520, Lies::kSymmetric, Lies::kSymmetric, true, true, -0.5f, 3,
     true},
    {"polynomial, three pieces", 3, 192, 192, 192, Lies::kSymmetric, Lies::kSymmetric, true, true, -0.5f, 3, true},
    {"polynomial, one row of squares", 90, 64, 64, 64, Lies::kSymmetric, Lies::kSymmetric, true, true, 0.5f, 3, true},
    {"Q X, two tiles", 2, 512, 768, 512, Lies::kSymmetric, Lies::kStraight, false, false, 1, 0},
    {"X Q with C, edges of every kind", 2, 264, 584, 264, Lies::kStraight, Lies::kTurned, false, true, 2, 1},
    {"more tiles than clusters, with C", 50, 264, 264, 72, Lies::kStraight, Lies::kTurned, true, true, 1, 1, true},
    {"Q X, three tiles", 3, 600, 328, 600, Lies::kSymmetric, Lies::kStraight, false, false, 1, 0},
    {"X Q, three tiles", 3, 328, 768, 768, Lies::kStraight, Lies::kSymmetric, false, false, 1, 0},
    {"P P, one of them as it lies", 2, 520, 520, 520, Lies::kStraight, Lies::kSymmetric, true, false, 1, 0, true},
    {"P Q, three tiles and a bit", 2, 776, 776, 776, Lies::kSymmetric, Lies::kSymmetric, true, false, 1, 0},
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

bool above_diagonal(std::size_t i, std::size_t j) { return i / kProductTile < j / kProductTile; }

Values symmetrized(Values values, int count, int side) {
  for (int matrix = 0; matrix < count; ++matrix)
    for (int i = 0; i < side; ++i)
      for (int j = i + 1; j < side; ++j)
        values[(static_cast<std::size_t>(matrix) * side + i) * side + j] =
            values[(static_cast<std::size_t>(matrix) * side + j) * side + i];
  return values;
}

// Tiles that nobody is to read become NaN.
void poison(Input<fp16>& x, int side) {
  std::vector<fp16> held = x.device.download();
  for (std::size_t at = 0; at < held.size(); ++at)
    if (above_diagonal(at / side % side, at % side)) held[at].bits = 0x7fff;
  x.device.upload(held);
}

void check_product(Report& report, const ProductCase& c) {
  Random random(67);
  const std::size_t a_size = static_cast<std::size_t>(c.count) * c.m * c.k,
                    b_size = static_cast<std::size_t>(c.count) * c.k * c.n,
                    size = static_cast<std::size_t>(c.count) * c.m * c.n;
  const double scale = 1 / std::sqrt(std::sqrt(static_cast<double>(c.k)));
  const auto operand = [&](std::size_t elements, Lies lies) {
    const Values values = random.normal(elements, scale);
    const bool symmetric = lies == Lies::kSymmetric || (c.same && c.b_lies == Lies::kSymmetric);
    return symmetric ? symmetrized(values, c.count, c.k) : values;
  };
  // Independent operands also where the result is called symmetric: it then shows which squares were computed.
  Input<fp16> a(operand(a_size, c.a_lies)), other(operand(b_size, c.b_lies)), terms(random.normal(size));
  if (c.a_lies == Lies::kSymmetric) poison(a, c.k);
  if (c.b_lies == Lies::kSymmetric) poison(other, c.k);
  if (c.symmetric) poison(terms, c.n);
  const Input<fp16>& b = c.same ? a : other;
  Buffer<fp16> out(size);  // NaN
  Buffer<int> progress(static_cast<std::size_t>(c.count) + 1);
  const float add = c.with_c ? 0.75f : 0;
  run_captured([&](Stream s) {
    const kernels::Product product{a.get(),     b.get(),  c.with_c ? terms.get() : nullptr,
                                   out.get(),   c.m,      c.n,
                                   c.k,         c.a_lies, c.b_lies,
                                   c.symmetric, c.scale,  add,
                                   c.identity};
    kernels::product_chain({&product, 1, c.count, progress.get()}, s);
  });
  Values want = products(c, c.a_lies == Lies::kTurned ? turned(a.host, c.count, c.k, c.m) : a.host,
                         c.b_lies == Lies::kTurned ? b.host : turned(b.host, c.count, c.k, c.n));
  for (std::size_t at = 0; at < size; ++at) {
    const std::size_t i = at / c.n % c.m, j = at % c.n;
    want[at] = c.scale * want[at] + add * terms[at] + (i == j ? c.identity : 0);
  }
  Values got = values_of(out);
  bool untouched = true;
  for (std::size_t at = 0; at < size && c.symmetric; ++at) {
    const std::size_t matrix = at / c.n / c.m, i = at / c.n % c.m, j = at % c.n;
    if (i / 64 < j / 64) want[at] = want[(matrix * c.m + j) * c.n + i];
    if (!above_diagonal(i, j)) continue;
    untouched = untouched && std::isnan(got[at]);
    got[at] = want[at] = 0;
  }
  report.compare("product_chain", c.name, got, want, {1.0 / 1000, 2e-5 * std::sqrt(c.k) * scale});
  report.expect("product_chain", std::string(c.name) + ": writes stay inside",
                untouched && out.guard_intact() && progress.guard_intact());
}

// Chains as Polar Express has them: G = X X' (or X' X), squares Y <- scale Y Y + add G + identity I, twice.
struct ChainCase {
  const char* name;
  int count, side, length;
  bool tall;  // X [length, side]
  int squares;
};
const std::vector<ChainCase> kChainCases = {
    {"chain, one matrix", 1, 64, 72, false, 3},
    {"chain, one matrix of several tiles", 1, 584, 648, false, 2},
    {"chain, a tile each, several turns", 300, 64, 136, false, 3},
    {"chain, a tile each, several turns, tall", 301, 72, 136, true, 3},
    {"chain, three tiles each, several turns", 70, 264, 264, false, 3},
    {"chain, tiles of all kinds, tall", 40, 328, 520, true, 2},
    {"chain, as long as may be", 50, 136, 264, false, 6},
};

double half(double value) {
  fp16 rounded;
  from_double(value, rounded);
  return to_double(rounded);
}

// [rows, columns] = a [rows, depth] b [depth, columns], as the kernel rounds it.
Values whole_product(const Values& a, const Values& b, int rows, int depth, int columns, double scale) {
  Values out(static_cast<std::size_t>(rows) * columns);
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < depth; ++k) {
      const double factor = scale * a[static_cast<std::size_t>(i) * depth + k];
      for (int j = 0; j < columns; ++j)
        out[static_cast<std::size_t>(i) * columns + j] += factor * b[static_cast<std::size_t>(k) * columns + j];
    }
  for (double& value : out) value = half(value);
  return out;
}

constexpr float kChainScale = 0.1f, kChainAdd = 0.2f, kChainIdentity = 0.5f;

Values chain_reference(const ChainCase& c, Values x, int iterations) {
  const int rows = c.tall ? c.length : c.side, columns = c.tall ? c.side : c.length;
  for (int i = 0; i < iterations; ++i) {
    const Values across = turned(x, 1, rows, columns);
    const Values gram = c.tall ? whole_product(across, x, c.side, c.length, c.side, 1)
                               : whole_product(x, across, c.side, c.length, c.side, 1);
    Values y = gram;
    for (int square = 0; square < c.squares; ++square) {
      Values next(y.size());
      const Values product = whole_product(y, y, c.side, c.side, c.side, kChainScale);
      for (std::size_t at = 0; at < next.size(); ++at)
        next[at] = half(product[at] + kChainAdd * gram[at] + (at % (c.side + 1) == 0 ? kChainIdentity : 0));
      y = next;
    }
    x = c.tall ? whole_product(x, y, c.length, c.side, c.side, 1) : whole_product(y, x, c.side, c.side, c.length, 1);
  }
  return x;
}

// A few different matrices again and again, in an order that no schedule has.
void check_chain(Report& report, const ChainCase& c) {
  constexpr int kDifferent = 3, kIterations = 2;
  Random random(71);
  const std::size_t size = static_cast<std::size_t>(c.side) * c.length,
                    square = static_cast<std::size_t>(c.side) * c.side;
  std::vector<Values> different, results;
  for (int i = 0; i < kDifferent; ++i) {
    different.push_back(random.normal(size, 1 / std::sqrt(static_cast<double>(c.length))));
    for (double& value : different.back()) value = half(value);
    results.push_back(chain_reference(c, different.back(), kIterations));
  }
  const auto which = [](int matrix) { return matrix * 7 % 11 % kDifferent; };
  Values start, want;
  for (int i = 0; i < c.count; ++i) {
    start.insert(start.end(), different[which(i)].begin(), different[which(i)].end());
    want.insert(want.end(), results[which(i)].begin(), results[which(i)].end());
  }
  const Input<fp16> x(start);
  Buffer<fp16> first(size * c.count), second(size * c.count);
  Buffer<fp16> gram(square * c.count), y[2] = {Buffer<fp16>(square * c.count), Buffer<fp16>(square * c.count)};
  Buffer<int> progress(static_cast<std::size_t>(c.count) + 1);
  const int S = c.side, rows = c.tall ? c.length : S, columns = c.tall ? S : c.length;
  std::vector<kernels::Product> chain;
  const fp16* from = x.get();
  for (int i = 0; i < kIterations; ++i) {
    fp16* to = i == 0 ? first.get() : second.get();
    chain.push_back({from, from, nullptr, gram.get(), S, S, c.length, c.tall ? Lies::kTurned : Lies::kStraight,
                     c.tall ? Lies::kStraight : Lies::kTurned, true});
    const fp16* of = gram.get();
    for (int j = 0; j < c.squares; ++j) {
      chain.push_back({of, of, gram.get(), y[j % 2].get(), S, S, S, Lies::kSymmetric, Lies::kSymmetric, true,
                       kChainScale, kChainAdd, kChainIdentity});
      of = y[j % 2].get();
    }
    if (c.tall)
      chain.push_back({from, of, nullptr, to, rows, columns, S, Lies::kStraight, Lies::kSymmetric, false});
    else
      chain.push_back({of, from, nullptr, to, rows, columns, S, Lies::kSymmetric, Lies::kStraight, false});
    from = to;
  }
  run_captured([&](Stream s) {
    kernels::product_chain({chain.data(), static_cast<int>(chain.size()), c.count, progress.get()}, s);
  });
  report.compare("product_chain", c.name, values_of(second), want, {1.0 / 100, 4e-3});
  report.expect("product_chain", std::string(c.name) + ": writes stay inside",
                first.guard_intact() && second.guard_intact() && gram.guard_intact() && y[0].guard_intact() &&
                    y[1].guard_intact() && progress.guard_intact());
}

}  // namespace

void check_products(Report& report) {
  for (const ProductCase& c : kProductCases) check_product(report, c);
  for (const ChainCase& c : kChainCases) check_chain(report, c);
}

}  // namespace switchyard::gpu_check
