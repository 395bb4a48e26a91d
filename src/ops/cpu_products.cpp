#include "ops/cpu_products.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "kernels/matrix_product.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using kernels::MatrixProduct;

// Where the parts of each product begin among the parts of all; the last entry is their number.
class Parts {
 public:
  void append(std::int64_t parts) { begin_.push_back(begin_.back() + parts); }
  std::int64_t total() const { return begin_.back(); }
  std::int64_t begin(std::size_t product) const { return begin_[product]; }
  // work(product, range of its parts) for each product with parts in [range.begin, range.end).
  template <class Work>
  void visit(kernels::Range range, Work work) const {
    auto product =
        static_cast<std::size_t>(std::upper_bound(begin_.begin(), begin_.end(), range.begin) - begin_.begin() - 1);
    for (std::int64_t at = range.begin; at < range.end; ++product) {
      const std::int64_t end = std::min(range.end, begin_[product + 1]);
      if (end > at) work(product, kernels::Range{at - begin_[product], end - begin_[product]});
      at = end;
    }
  }

 private:
  std::vector<std::int64_t> begin_{0};
};

// Threads take one part after the other until none is left: parts differ in size, and threads in speed.
template <class Work>
void share(std::int64_t parts, Work work) {
  std::atomic<std::int64_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t thread = begin; thread < end; ++thread)
      for (std::int64_t i = next++; i < parts; i = next++) work(kernels::Range{i, i + 1});
  });
}

template <class T>
void multiply(const std::vector<MatrixProduct<T>>& products, const Tensor& like) {
  const kernels::MatrixTiles tiles = kernels::matrix_tiles<T>();
  Parts panels, values, blocks;
  for (const MatrixProduct<T>& p : products) {
    panels.append(tiles.panels(p.columns));
    values.append(tiles.panels(p.columns) * tiles.panel_columns * p.inner);
    blocks.append(tiles.blocks(p.rows));
  }
  const Tensor packed = at::empty({values.total()}, like.options());
  T* const to = packed.data_ptr<T>();
  parallel_ranges(panels.total(), 4, [&](kernels::Range range) {
    panels.visit(range, [&](std::size_t i, kernels::Range part) {
      kernels::pack_panels_cpu(products[i], to + values.begin(i), part);
    });
  });
  share(blocks.total(), [&](kernels::Range range) {
    blocks.visit(range, [&](std::size_t i, kernels::Range part) {
      kernels::matrix_product_cpu(products[i], to + values.begin(i), part);
    });
  });
}

// describe(Type, expert, first row, rows) is the product of an expert that has rows.
template <class Describe>
void multiply_experts(const Tensor& like, const DispatchPlan& plan, Describe describe) {
  const auto run = [&](auto type) {
    using T = typename decltype(type)::type;
    std::vector<MatrixProduct<T>> products;
    const int* offset = plan.offset_E1.data_ptr<int>();
    for (int e = 0; e < plan.experts; ++e)
      if (offset[e + 1] > offset[e]) products.push_back(describe(type, e, offset[e], offset[e + 1] - offset[e]));
    multiply(products, like);
  };
  if (like.scalar_type() == at::kDouble) return run(Type<double>{});
  SWITCHYARD_ASSERT(like.scalar_type() == at::kFloat, "CPU products take fp32 or fp64");
  run(Type<float>{});
}

}  // namespace

Tensor CpuProducts::forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const {
  const std::int64_t width = w_END.shape[1], inner = w_END.shape[2];
  Tensor out = at::empty({plan.row_capacity, width}, rows_RD.options());
  multiply_experts(rows_RD, plan, [&](auto type, std::int64_t e, std::int64_t first, std::int64_t rows) {
    using T = typename decltype(type)::type;
    return MatrixProduct<T>{pointer<T>(rows_RD) + first * inner,
                            inner,
                            1,
                            pointer<T>(w_END.compute) + e * width * inner,
                            1,
                            inner,
                            pointer<T>(out) + first * width,
                            width,
                            rows,
                            width,
                            inner,
                            false};
  });
  return out;
}

Tensor CpuProducts::dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const {
  const std::int64_t inner = w_END.shape[1], width = w_END.shape[2];
  Tensor out = at::empty({plan.row_capacity, width}, d_RN.options());
  multiply_experts(d_RN, plan, [&](auto type, std::int64_t e, std::int64_t first, std::int64_t rows) {
    using T = typename decltype(type)::type;
    return MatrixProduct<T>{pointer<T>(d_RN) + first * inner,
                            inner,
                            1,
                            pointer<T>(w_END.compute) + e * inner * width,
                            width,
                            1,
                            pointer<T>(out) + first * width,
                            width,
                            rows,
                            width,
                            inner,
                            false};
  });
  return out;
}

void CpuProducts::wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
                        const DispatchPlan& plan) const {
  const std::int64_t height = w_END.shape[1], width = w_END.shape[2];
  SWITCHYARD_ASSERT(w_END.grad.scalar_type() == d_RN.scalar_type(), "gradients have the type of the activations");
  multiply_experts(d_RN, plan, [&](auto type, std::int64_t e, std::int64_t first, std::int64_t rows) {
    using T = typename decltype(type)::type;
    return MatrixProduct<T>{pointer<T>(d_RN) + first * height,
                            1,
                            height,
                            pointer<T>(rows_RD) + first * width,
                            width,
                            1,
                            pointer<T>(w_END.grad) + e * height * width,
                            width,
                            height,
                            width,
                            rows,
                            true};
  });
}

}  // namespace switchyard::ops
