#include <ATen/cuda/CUDAContext.h>

#include <algorithm>

#include "kernels/device.h"
#include "kernels/symmetric_product.h"
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

// out = scale A B + add C + identity I
struct PolarBatch::Product {
  at::Tensor a, b, out;
  bool a_turned = false, b_turned = false, symmetric = false;
  double scale = 1;
  at::Tensor c = {};
  double add = 0, identity = 0;
};

PolarBatch::PolarBatch(std::int64_t count, std::int64_t rows, std::int64_t columns, const at::Tensor& scheduler)
    : tall_(rows > columns), own_products_(own_products(rows, columns, scheduler.device())), scheduler_(scheduler) {
  const auto options = scheduler.options().dtype(at::kHalf);
  const std::int64_t side = short_side(rows, columns);
  x_ = at::empty({count, rows, columns}, options);
  next_ = at::empty_like(x_);
  gram_ = at::empty({count, side, side}, options);
  for (at::Tensor& y : y_) y = at::empty_like(gram_);
}

std::int64_t PolarBatch::bytes_of_one(std::int64_t rows, std::int64_t columns) {
  const std::int64_t side = short_side(rows, columns);
  return 2 * (2 * rows * columns + 3 * side * side);
}

void PolarBatch::run(std::int64_t count, int iterations) {
  for (int i = 0; i < iterations; ++i) {
    multiply(count, {x_, x_, gram_, tall_, !tall_, true});
    const at::Tensor* y = &gram_;
    for (const auto& [scale, add, identity] : polar_squares(i)) {
      const at::Tensor& squared = y == &y_[0] ? y_[1] : y_[0];
      // Y turned is Y, whose rows along k load faster.
      multiply(count, {*y, *y, squared, false, true, true, scale, gram_, add, identity});
      y = &squared;
    }
    if (tall_)
      multiply(count, {x_, *y, next_, false, true});
    else
      multiply(count, {*y, x_, next_});
    std::swap(x_, next_);
  }
}

void PolarBatch::multiply(std::int64_t count, const Product& p) {
  const std::int64_t m = p.out.size(1), n = p.out.size(2), k = p.a.size(p.a_turned ? 1 : 2);
  if (own_products_) {
    using kernels::fp16;
    kernels::symmetric_product(
        {ops::pointer<fp16>(p.a), ops::pointer<fp16>(p.b), ops::pointer<fp16>(p.c), ops::pointer<fp16>(p.out),
         static_cast<int>(count), static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), p.a_turned, p.b_turned,
         p.symmetric, static_cast<float>(p.scale), static_cast<float>(p.add), static_cast<float>(p.identity),
         scheduler_.data_ptr<int>(), backward_},
        ops::current_stream(p.out));
    backward_ = !backward_;
    return;
  }
  const at::Tensor a = p.a.narrow(0, 0, count), b = p.b.narrow(0, 0, count);
  at::Tensor out = p.out.narrow(0, 0, count);
  const at::Tensor left = p.a_turned ? a.transpose(1, 2) : a, right = p.b_turned ? b.transpose(1, 2) : b;
  if (p.c.defined())
    at::baddbmm_out(out, p.c.narrow(0, 0, count), left, right, p.add, p.scale);
  else
    at::bmm_out(out, left, right);
  if (p.identity != 0) out.diagonal(0, 1, 2).add_(p.identity);
}

}  // namespace switchyard
