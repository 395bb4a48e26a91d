#include <ATen/cuda/CUDAContext.h>

#include <algorithm>
#include <vector>

#include "kernels/device.h"
#include "kernels/product_chain.h"
#include "ops/launch.h"
#include "optim/polar_batch.h"
#include "optim/polar_express.h"

namespace switchyard {
namespace {

std::int64_t short_side(std::int64_t rows, std::int64_t columns) { return std::min(rows, columns); }

bool own_products(std::int64_t rows, std::int64_t columns, at::Device device) {
  const cudaDeviceProp& properties = *at::cuda::getDeviceProperties(device.index());
  return kernels::runs_hopper_kernels(properties.major, properties.minor) && rows % 8 == 0 && columns % 8 == 0;
}

}  // namespace

using Lies = kernels::ProductOperand;

// out = scale A B + add C + identity I
struct PolarBatch::Product {
  at::Tensor a, b, out;
  Lies a_lies, b_lies;
  bool symmetric = false;
  double scale = 1;
  at::Tensor c = {};
  double add = 0, identity = 0;
};

PolarBatch::PolarBatch(std::int64_t count, std::int64_t rows, std::int64_t columns, at::Device device)
    : tall_(rows > columns), own_products_(own_products(rows, columns, device)) {
  const auto options = at::TensorOptions(device).dtype(at::kHalf);
  const std::int64_t side = short_side(rows, columns);
  x_ = at::empty({count, rows, columns}, options);
  next_ = at::empty_like(x_);
  gram_ = at::empty({count, side, side}, options);
  for (at::Tensor& y : y_) y = at::empty_like(gram_);
  if (own_products_) progress_ = at::empty({count + 1}, options.dtype(at::kInt));
}

std::int64_t PolarBatch::bytes_of_one(std::int64_t rows, std::int64_t columns) {
  const std::int64_t side = short_side(rows, columns);
  return 2 * (2 * rows * columns + 3 * side * side);
}

void PolarBatch::update(std::int64_t count, int iterations, kernels::MuonApply update, bool aligned) {
  if (own_products_ && aligned && iterations > 0) return run(count, iterations, &update);
  run(count, iterations);
  update.direction = ops::pointer<kernels::fp16>(x_);
  kernels::muon_apply(update, ops::current_stream(x_));
}

void PolarBatch::run(std::int64_t count, int iterations, const kernels::MuonApply* update) {
  std::vector<Product> products;
  for (int i = 0; i < iterations; ++i) {
    products.push_back(
        {x_, x_, gram_, tall_ ? Lies::kTurned : Lies::kStraight, tall_ ? Lies::kStraight : Lies::kTurned, true});
    at::Tensor y = gram_;
    for (const auto& [scale, add, identity] : polar_squares(i)) {
      const at::Tensor& squared = y.is_same(y_[0]) ? y_[1] : y_[0];
      products.push_back({y, y, squared, Lies::kSymmetric, Lies::kSymmetric, true, scale, gram_, add, identity});
      y = squared;
    }
    if (tall_)
      products.push_back({x_, y, next_, Lies::kStraight, Lies::kSymmetric});
    else
      products.push_back({y, x_, next_, Lies::kSymmetric, Lies::kStraight});
    std::swap(x_, next_);
  }
  if (own_products_)
    multiply(count, products, update);
  else
    for (const Product& product : products) multiply(count, product);
}

void PolarBatch::multiply(std::int64_t count, const std::vector<Product>& products,
                          const kernels::MuonApply* update) const {
  using kernels::fp16;
  std::vector<kernels::Product> list;
  for (const Product& p : products)
    list.push_back({ops::pointer<fp16>(p.a), ops::pointer<fp16>(p.b), ops::pointer<fp16>(p.c),
                    ops::pointer<fp16>(p.out), static_cast<int>(p.out.size(1)), static_cast<int>(p.out.size(2)),
                    static_cast<int>(p.a.size(p.a_lies == Lies::kTurned ? 1 : 2)), p.a_lies, p.b_lies, p.symmetric,
                    static_cast<float>(p.scale), static_cast<float>(p.add), static_cast<float>(p.identity)});
  for (std::size_t first = 0; first < list.size(); first += kernels::kLongestChain) {
    const std::size_t length = std::min<std::size_t>(kernels::kLongestChain, list.size() - first);
    const bool last = first + length == list.size();
    kernels::product_chain({list.data() + first, static_cast<int>(length), static_cast<int>(count),
                            progress_.data_ptr<int>(), last ? update : nullptr},
                           ops::current_stream(x_));
  }
}

void PolarBatch::multiply(std::int64_t count, const Product& p) {
  const at::Tensor a = p.a.narrow(0, 0, count), b = p.b.narrow(0, 0, count);
  at::Tensor out = p.out.narrow(0, 0, count);
  const at::Tensor left = p.a_lies == Lies::kTurned ? a.transpose(1, 2) : a,
                   right = p.b_lies == Lies::kTurned ? b.transpose(1, 2) : b;
  if (p.c.defined())
    at::baddbmm_out(out, p.c.narrow(0, 0, count), left, right, p.add, p.scale);
  else
    at::bmm_out(out, left, right);
  if (p.identity != 0) out.diagonal(0, 1, 2).add_(p.identity);
}

}  // namespace switchyard
