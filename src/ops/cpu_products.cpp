#include "ops/cpu_products.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "kernels/activation.h"
#include "kernels/matrix_product.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using kernels::MatrixProduct;
using kernels::MatrixRows;
using kernels::Range;

// Where the parts of each product begin among the parts of all; the last entry is their number.
class Parts {
 public:
  void append(std::int64_t parts) { begin_.push_back(begin_.back() + parts); }
  std::int64_t total() const { return begin_.back(); }
  std::int64_t begin(std::size_t product) const { return begin_[product]; }
  // work(product, range of its parts) for each product with parts in [range.begin, range.end).
  template <class Work>
  void visit(Range range, Work work) const {
    const auto after = std::upper_bound(begin_.begin(), begin_.end(), range.begin);
    auto product = static_cast<std::size_t>(after - begin_.begin() - 1);
    for (std::int64_t at = range.begin; at < range.end; ++product) {
      const std::int64_t end = std::min(range.end, begin_[product + 1]);
      if (end > at) work(product, Range{at - begin_[product], end - begin_[product]});
      at = end;
    }
  }

 private:
  std::vector<std::int64_t> begin_{0};
};

// The right-hand matrices of some products in the order in which tiles read them.
template <class T>
class Packed {
 public:
  Packed(const std::vector<MatrixProduct<T>>& products, const at::TensorOptions& options) {
    const kernels::MatrixTiles tiles = kernels::matrix_tiles<T>();
    Parts panels;
    for (const MatrixProduct<T>& p : products) {
      panels.append(tiles.panels(p.columns));
      values_.append(tiles.panels(p.columns) * tiles.panel_columns * p.inner);
    }
    storage_ = at::empty({values_.total()}, options);
    T* const to = storage_.data_ptr<T>();
    parallel_ranges(panels.total(), 4, [&](Range range) {
      panels.visit(range,
                   [&](std::size_t i, Range part) { pack_panels_cpu(products[i], to + values_.begin(i), part); });
    });
  }
  const T* of(std::size_t product) const { return storage_.data_ptr<T>() + values_.begin(product); }

 private:
  Parts values_;
  Tensor storage_;
};

// work(thread, part) for parts [0, parts): threads take one after the other until none is left, because parts differ in
// size and threads in speed.
template <class Work>
void share(std::int64_t parts, Work work) {
  std::atomic<std::int64_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t thread = begin; thread < end; ++thread)
      for (std::int64_t i = next++; i < parts; i = next++) work(thread, i);
  });
}

// A piece of work: some rows of one product's result.
struct Block {
  std::size_t product;
  Range part;                // in the product's own count of blocks
  std::int64_t first, rows;  // in its result
};

// work(thread, block) for all blocks of all products' results.
template <class T, class Work>
void each_block(const std::vector<MatrixProduct<T>>& products, Work work) {
  const kernels::MatrixTiles tiles = kernels::matrix_tiles<T>();
  Parts blocks;
  for (const MatrixProduct<T>& p : products) blocks.append(tiles.blocks(p.rows));
  share(blocks.total(), [&](std::int64_t thread, std::int64_t block) {
    blocks.visit({block, block + 1}, [&](std::size_t i, Range part) {
      const std::int64_t first = part.begin * tiles.block_rows;
      work(thread, Block{i, part, first, std::min<std::int64_t>(tiles.block_rows, products[i].rows - first)});
    });
  });
}

template <class T>
void multiply(const std::vector<MatrixProduct<T>>& products, const at::TensorOptions& options) {
  const Packed<T> packed(products, options);
  each_block(products, [&](std::int64_t /*thread*/, const Block& block) {
    matrix_product_cpu(products[block.product], packed.of(block.product), block.part);
  });
}

// Room for a block of rows, [threads, rows, width].
template <class T>
Tensor block_of_each_thread(std::int64_t width, const at::TensorOptions& options) {
  return at::empty({at::get_num_threads(), kernels::matrix_tiles<T>().block_rows, width}, options);
}

// An expert that has rows.
struct Expert {
  std::int64_t index, first, rows;
};
std::vector<Expert> experts_with_rows(const DispatchPlan& plan) {
  std::vector<Expert> experts;
  const int* offset = plan.offset_E1.data_ptr<int>();
  for (int e = 0; e < plan.experts; ++e)
    if (offset[e + 1] > offset[e]) experts.push_back({e, offset[e], offset[e + 1] - offset[e]});
  return experts;
}

template <class Run>
void with_type_of_cpu(const Tensor& x, Run run) {
  if (x.scalar_type() == at::kDouble) return run(Type<double>{});
  SWITCHYARD_ASSERT(x.scalar_type() == at::kFloat, "CPU products take fp32 or fp64");
  run(Type<float>{});
}

template <class T>
T* row(const Tensor& rows, std::int64_t i) {
  return pointer<T>(rows) + i * rows.size(-1);
}
// What products read: an expert's rows, their tokens, its matrix.
template <class T>
MatrixRows<T> rows_of(const Tensor& rows, const Expert& e, bool turned = false) {
  return {row<T>(rows, e.first), rows.size(1), nullptr, turned};
}
template <class T>
MatrixRows<T> tokens_of(const Tensor& values_TD, const DispatchPlan& plan, const Expert& e, bool turned = false) {
  return {pointer<T>(values_TD), values_TD.size(1), plan.token_of_row_R.data_ptr<int>() + e.first, turned};
}
template <class T>
MatrixRows<T> weight_of(const Parameter& w, const Expert& e, bool turned) {
  return {pointer<T>(w.compute) + e.index * w.shape[1] * w.shape[2], w.shape[2], nullptr, turned};
}

enum class By { kWeight, kTransposed };  // rows W or rows W^T

// The rows of an expert times its matrix, into its rows of `out` [R, columns].
template <class T>
MatrixProduct<T> product(const MatrixRows<T>& rows, const Parameter& w, By by, const Tensor& out, const Expert& e) {
  const bool turned = by == By::kTransposed;
  const std::int64_t columns = w.shape[turned ? 1 : 2], inner = w.shape[turned ? 2 : 1];
  return {rows, weight_of<T>(w, e, turned), row<T>(out, e.first), columns, e.rows, columns, inner};
}

// d_e^T rows_e, added to the expert's slice of the weight's gradient.
template <class T>
MatrixProduct<T> gradient(const MatrixRows<T>& d_turned, const MatrixRows<T>& rows, const Parameter& w,
                          const Expert& e) {
  SWITCHYARD_ASSERT(w.grad.element_size() == sizeof(T), "gradients have the activations' type");
  const std::int64_t height = w.shape[1], width = w.shape[2];
  return {d_turned, rows, pointer<T>(w.grad) + e.index * height * width, width, height, width, e.rows, true};
}

Tensor each_expert(const Tensor& rows, const Parameter& w, By by, const DispatchPlan& plan) {
  Tensor out = at::empty({plan.row_capacity, w.shape[by == By::kTransposed ? 1 : 2]}, rows.options());
  with_type_of_cpu(rows, [&](auto type) {
    using T = typename decltype(type)::type;
    std::vector<MatrixProduct<T>> products;
    for (const Expert& e : experts_with_rows(plan)) products.push_back(product(rows_of<T>(rows, e), w, by, out, e));
    multiply(products, rows.options());
  });
  return out;
}

}  // namespace

Tensor CpuProducts::forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const {
  return each_expert(rows_RD, w_END, By::kTransposed, plan);
}

Tensor CpuProducts::dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const {
  return each_expert(d_RN, w_END, By::kWeight, plan);
}

void CpuProducts::wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
                        const DispatchPlan& plan) const {
  with_type_of_cpu(d_RN, [&](auto type) {
    using T = typename decltype(type)::type;
    std::vector<MatrixProduct<T>> products;
    for (const Expert& e : experts_with_rows(plan))
      products.push_back(gradient(rows_of<T>(d_RN, e, true), rows_of<T>(rows_RD, e), w_END, e));
    multiply(products, d_RN.options());
  });
}

FusedExperts::Forward CpuProducts::forward(const Tensor& x, const Tensor& weight_R, const Parameter& up,
                                           const Parameter& down, ActivationKind kind, const DispatchPlan& plan) const {
  const std::int64_t hidden = down.shape[2];
  const Forward result{at::empty({plan.row_capacity, up.shape[1]}, x.options()),
                       at::empty({plan.row_capacity, down.shape[1]}, x.options())};
  with_type_of_cpu(x, [&](auto type) {
    using T = typename decltype(type)::type;
    const std::vector<Expert> experts = experts_with_rows(plan);
    std::vector<MatrixProduct<T>> ups, downs;
    for (const Expert& e : experts) {
      ups.push_back(product(tokens_of<T>(x, plan, e), up, By::kTransposed, result.pre_RN, e));
      downs.push_back(product(MatrixRows<T>{} /*a block's activation*/, down, By::kTransposed, result.out_RD, e));
    }
    const Packed<T> packed_up(ups, x.options()), packed_down(downs, x.options());
    const Tensor room = block_of_each_thread<T>(hidden, x.options());
    each_block(ups, [&](std::int64_t thread, const Block& block) {
      const std::size_t i = block.product;
      const std::int64_t first = experts[i].first + block.first;
      T* const active = row<T>(room, thread * room.size(1));
      matrix_product_cpu(ups[i], packed_up.of(i), block.part);
      activation_cpu(kernels::Activation<T>{row<T>(result.pre_RN, first), pointer<float>(weight_R) + first, nullptr,
                                            nullptr, active, block.rows, static_cast<int>(hidden), kind},
                     Range{0, block.rows});
      MatrixProduct<T> of_block = downs[i];
      of_block.a = {active, hidden};
      of_block.c = row<T>(result.out_RD, first);
      of_block.rows = block.rows;
      matrix_product_cpu(of_block, packed_down.of(i), Range{0, 1});
    });
  });
  return result;
}

FusedExperts::Backward CpuProducts::backward(const Tensor& x, const Tensor& dy, const Tensor& pre_RN,
                                             const Tensor& weight_R, const Parameter& up, const Parameter& down,
                                             ActivationKind kind, const DispatchPlan& plan) const {
  const std::int64_t hidden = down.shape[2];
  const Backward result{at::empty({plan.row_capacity, up.shape[2]}, x.options()), at::empty_like(weight_R)};
  with_type_of_cpu(x, [&](auto type) {
    using T = typename decltype(type)::type;
    const std::vector<Expert> experts = experts_with_rows(plan);
    const Tensor d_pre = at::empty_like(pre_RN), active = at::empty({plan.row_capacity, hidden}, x.options());
    std::vector<MatrixProduct<T>> through_down, through_up, gradients;
    for (const Expert& e : experts) {
      through_down.push_back(product(tokens_of<T>(dy, plan, e), down, By::kWeight, active, e));
      through_up.push_back(product(rows_of<T>(d_pre, e), up, By::kWeight, result.dx_RD, e));
      gradients.push_back(gradient(tokens_of<T>(dy, plan, e, true), rows_of<T>(active, e), down, e));
      gradients.push_back(gradient(rows_of<T>(d_pre, e, true), tokens_of<T>(x, plan, e), up, e));
    }
    const Packed<T> packed_down(through_down, x.options()), packed_up(through_up, x.options());
    each_block(through_down, [&](std::int64_t /*thread*/, const Block& block) {
      const std::size_t i = block.product;
      const std::int64_t first = experts[i].first + block.first;
      T* const d_active = row<T>(active, first);  // and then the activation itself, in the same place
      matrix_product_cpu(through_down[i], packed_down.of(i), block.part);
      activation_backward_cpu(
          kernels::ActivationBackward<T>{
              row<T>(pre_RN, first), d_active, pointer<float>(weight_R) + first, nullptr, nullptr, row<T>(d_pre, first),
              d_active, pointer<float>(result.d_weight_R) + first, block.rows, static_cast<int>(hidden), kind},
          Range{0, block.rows});
      matrix_product_cpu(through_up[i], packed_up.of(i), block.part);
    });
    multiply(gradients, x.options());
  });
  return result;
}

}  // namespace switchyard::ops
