// Sums of rows that the norm behind a sparse layer takes itself: the same bits as a sum and a norm after it, forward
// and backward, and nothing of the rows kept.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/add_norm.h"
#include "ops/inject_loss.h"
#include "ops/moe_ffn.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor random(const std::vector<std::int64_t>& shape, std::uint64_t seed, at::ScalarType type = at::kDouble) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble).to(type);
}

struct Place {
  at::Device device;
  at::ScalarType type;
};
std::vector<Place> places() {
  std::vector<Place> list{{at::kCPU, at::kFloat}, {at::kCPU, at::kDouble}};
  if (at::hasCUDA()) list.push_back({at::Device(at::kCUDA, 0), at::kFloat});
  return list;
}

struct RowsCase {
  const char* name;
  std::int64_t tokens, width;
  int top_k;
  bool scalars, gain;
  int missing = 0;  // of so many assignments one has no row; 0: all have
  int experts = 0;  // of a router that reads the norm
};
const std::vector<RowsCase> kRowsCases = {
    {"one token", 1, 8, 1, true, false},
    {"K 1", 127, 72, 1, true, true, 3},
    {"K 2", 129, 768, 2, true, false},
    {"K 2, some missing, no scalars", 129, 96, 2, false, true, 3},
    {"K 3", 65, 136, 3, true, true, 5},
    {"K 8", 77, 64, 8, true, false, 4},
    {"no rows at all", 9, 64, 2, true, false, 1},
    {"K 2, a block a row", 19, 1280, 2, true, false, 7},
    {"K 5, wide", 7, 4096, 5, false, true, 7},
    {"a router behind it", 33, 72, 2, false, false, 7, 4},
    {"a router behind it and scalars", 33, 72, 3, true, true, 7, 4},
};

// Rows in an order of their own; those that nobody names are NaN.
RowSum rows_of(const RowsCase& c, const Place& place) {
  const std::int64_t assignments = c.tokens * c.top_k, all = assignments + 5;
  at::manual_seed(3);
  Tensor row_of = at::randperm(all, at::kLong).narrow(0, 0, assignments).clone();
  for (std::int64_t i = 0; c.missing > 0 && i < assignments; i += c.missing) row_of[i] = -1;
  const Tensor named = at::zeros({all + 1, 1}, at::kBool).index_fill(0, row_of.add(1), true).narrow(0, 1, all);
  const Tensor rows = random({all, c.width}, 4).masked_fill(named.logical_not(), std::nan(""));
  return {rows.to(place.device, place.type), row_of.view({c.tokens, c.top_k}).to(place.device, at::kInt)};
}

// Leaves `rows` for the norm; their gradient goes to `made`.
class Leave : public torch::autograd::Function<Leave> {
 public:
  static Tensor forward(AutogradContext*, const Tensor& /*made*/, const RowSum& rows) { return stand_in_for(rows); }
  static variable_list backward(AutogradContext*, const variable_list& grads) { return {grads[0], Tensor()}; }
};

// CPU kernels know any width, CUDA's multiples of 8.
std::vector<RowsCase> cases_of(const Place& place) {
  std::vector<RowsCase> cases = kRowsCases;
  if (place.device.is_cpu()) cases.push_back({"odd width", 31, 13, 3, true, true, 4});
  if (place.device.is_cpu()) cases.push_back({"one value", 3, 1, 2, false, false, 4});
  return cases;
}

std::vector<Tensor> norm_of_rows(const RowsCase& c, const Place& place, bool two_passes) {
  ParameterStore store;
  Parameter& keep = store.add("keep", ParameterKind::kKeepScalar, {3}, {Init::Kind::kNormal, 1.0});
  Parameter& again = store.add("again", ParameterKind::kAgainScalar, {3}, {Init::Kind::kNormal, 1.0});
  Parameter& gain = store.add("gain", ParameterKind::kNorm, {c.width}, {Init::Kind::kNormal, 1.0});
  Parameter& router =
      store.add("router", ParameterKind::kRouter, {std::max(c.experts, 1), c.width}, {Init::Kind::kNormal, 0.3});
  store.allocate(place.device, at::kFloat, store.contiguous());
  store.initialize(7);
  Residual r;
  if (c.scalars) r.keep = &keep, r.again = &again, r.index = 1;
  if (c.gain) r.gain = &gain;
  if (c.experts) r.router = &router;
  const auto leaf = [&](std::uint64_t seed) {
    return random({c.tokens, c.width}, seed).to(place.device, place.type).requires_grad_(true);
  };
  const Tensor x = leaf(1), x0 = leaf(2), made = leaf(5);
  const RowSum rows = rows_of(c, place);
  const Addend left(Leave::apply(made, rows), rows);
  const Normed n = add_norm(x, two_passes ? Addend(summed(left)) : left, c.scalars ? x0 : Tensor(), r);
  std::vector<Tensor> roots{n.x_TD, n.n_TD}, seeds;
  if (c.experts) roots.push_back(n.logits_TE);
  for (std::size_t i = 0; i < roots.size(); ++i)
    seeds.push_back(random(roots[i].sizes().vec(), 10 + i).to(place.device, roots[i].scalar_type()));
  torch::autograd::backward(roots, seeds);
  std::vector<Tensor> results = roots;
  for (const Tensor& input : {x, made, x0}) results.push_back(input.grad().defined() ? input.grad() : Tensor());
  for (const auto& parameter : store.all()) results.push_back(parameter->grad.clone());
  return results;
}

TEST(RowsOfANorm, AreSummedAsByAPassOfTheirOwn) {
  for (const Place& place : places())
    for (const RowsCase& c : cases_of(place)) {
      // The logits of a double are those of a float.
      if (c.experts && place.type == at::kDouble) continue;
      SCOPED_TRACE(c.name);
      const std::vector<Tensor> got = norm_of_rows(c, place, false), want = norm_of_rows(c, place, true);
      ASSERT_EQ(got.size(), want.size());
      for (std::size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(got[i].defined(), want[i].defined()) << "result " << i;
        EXPECT_TRUE(!got[i].defined() || at::equal(got[i], want[i])) << "result " << i;
      }
      EXPECT_TRUE(got[0].isfinite().all().item<bool>());
      EXPECT_GT(got[c.experts ? 4 : 3].abs().sum().item<double>(), 0);  // the gradient of what made the rows
    }
}

// A layer of experts and the norm behind it.
struct Layer {
  explicit Layer(const Place& place) {
    up = &store.add("up", ParameterKind::kExpert, {4, 24, 16}, {Init::Kind::kNormal, 0.3});
    down = &store.add("down", ParameterKind::kExpert, {4, 16, 24}, {Init::Kind::kNormal, 0.3});
    store.allocate(place.device, at::kFloat, store.contiguous());
    store.initialize(5);
    x = random({33, 16}, 1).to(place.device, at::kFloat).requires_grad_(true);
    weight = random({33, 2}, 2).to(place.device, at::kFloat).requires_grad_(true);
    const std::int64_t assignments = 66;
    expert = at::arange(assignments, at::kInt).remainder(5).sub(1).view({33, 2}).to(place.device);  // -1: dropped
  }
  Addend rows(const MoeFfnOptions& options = {}) {
    const GroupedProducts& products = GroupedProducts::choose(x.device(), at::kFloat);
    return moe_ffn_rows(x, weight, {up, down, ActivationKind::kRelu2},
                        dispatch(expert, 4, products.alignment(expert.numel(), 4)), products, options);
  }
  // Of the norm of x and what the experts add to it.
  std::vector<Tensor> results(const Addend& addend) {
    const Normed n = add_norm(x, addend, Tensor(), {});
    torch::autograd::backward({n.n_TD}, {random({33, 16}, 9).to(x.device(), at::kFloat)});
    return {n.x_TD, n.n_TD, x.grad(), weight.grad(), up->grad, down->grad};
  }

  ParameterStore store;
  Parameter *up, *down;
  Tensor x, weight, expert;
};

TEST(RowsOfANorm, ComeFromTheExpertsWithAllGradients) {
  for (const Place& place : places()) {
    if (place.type == at::kDouble) continue;
    for (const bool recompute : {false, true}) {
      MoeFfnOptions options;
      options.recompute = recompute;
      Layer left(place), taken(place);
      const Addend addend = left.rows(options);
      ASSERT_TRUE(addend.rows.rows_RD.defined());
      EXPECT_EQ(addend.delta_TD.sizes(), left.x.sizes());
      EXPECT_EQ(addend.delta_TD.storage().nbytes(), sizeof(float));
      const auto got = left.results(addend), want = taken.results(summed(taken.rows(options)));
      for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(at::equal(got[i], want[i])) << "result " << i;
    }
  }
}

TEST(RowsOfANorm, LiveNoLongerThanTheirReader) {
  Layer layer({at::kCPU, at::kFloat});
  Addend addend = layer.rows();
  const c10::weak_intrusive_ptr<at::TensorImpl> rows(addend.rows.rows_RD.getIntrusivePtr());
  const Normed n = add_norm(layer.x, std::exchange(addend, {}), Tensor(), {});
  EXPECT_TRUE(rows.expired());
  EXPECT_TRUE(n.n_TD.requires_grad());
}

TEST(RowsOfANorm, LetALossEnterByTheirStandIn) {
  const Place place{at::kCPU, at::kFloat};
  const auto run = [&](bool left) {
    Layer layer(place);
    Addend addend = layer.rows();
    if (!left) addend = summed(addend);
    addend.delta_TD = inject_loss(addend.delta_TD, layer.weight.square().sum(), 0.5);
    return layer.results(addend);
  };
  const auto got = run(true), want = run(false);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(at::equal(got[i], want[i])) << "result " << i;
}

TEST(RowsOfANorm, AreNotLeftWhereZeroExpertsJoinTheSum) {
  Layer layer({at::kCPU, at::kFloat});
  MoeFfnOptions options;
  options.zero.expert_TK = layer.expert;  // none of these columns is a zero expert's
  options.zero.first_copy = options.zero.first_constant = options.zero.end = 4;
  const Addend taken = layer.rows(options);
  EXPECT_FALSE(taken.rows.rows_RD.defined());
  EXPECT_TRUE(at::equal(taken.delta_TD, summed(layer.rows())));
}

}  // namespace
}  // namespace switchyard::ops
