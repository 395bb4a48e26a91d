// A gradient that is left as rows (ops/row_gradient.h): what autograd makes of it, on ops of this file's; then
// moe_ffn behind the norm with the router's product, which takes rows on CUDA.
#include "ops/row_gradient.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>

#include "ops/add_norm.h"
#include "ops/moe_ffn.h"
#include "ops/recompute.h"
#include "ops/router_scores.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int kTopK = 3;

Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed, at::ScalarType type = at::kFloat) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble).to(type);
}

Tensor summed(const RowSum& rows) {
  return rows.rows_RD.index_select(0, rows.row_of_TK.view(-1)).view({-1, kTopK, rows.rows_RD.size(1)}).sum(1);
}

int rows_taken = 0;

// 2 x
class Giver : public torch::autograd::Function<Giver> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x) {
    keep_row_gradient(context);
    context->set_materialize_grads(false);
    return x * 2;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const RowSum rows = take_rows(context);
    rows_taken += rows.rows_RD.defined();
    Tensor d = grads[0];
    if (rows.rows_RD.defined()) d = d.defined() ? d + summed(rows) : summed(rows);
    return {d * 2};
  }
};

// {sin x, x itself}, as the router's product hands x on
class Passer : public torch::autograd::Function<Passer> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x) {
    keep_row_gradient(context);
    context->save_for_backward({x});
    context->set_materialize_grads(false);
    return {x.sin(), x};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const RowSum rows = take_rows(context);
    rows_taken += rows.rows_RD.defined();
    Tensor d = grads[0] * context->get_saved_variables()[0].cos();
    if (grads[1].defined()) d = d + grads[1];
    return {rows.rows_RD.defined() ? d + summed(rows) : d};
  }
};

struct Place : torch::CustomClassHolder {
  c10::intrusive_ptr<RowGradient> d_x;
};

// x + 2 x + 3 x
class Reader : public torch::autograd::Function<Reader> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const c10::intrusive_ptr<Place>& place) {
    context->saved_data["place"] = c10::IValue::make_capsule(place);
    return x * 6;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto capsule = context->saved_data["place"].toCapsule();
    const auto& place = static_cast<const Place&>(*capsule);
    const std::int64_t tokens = grads[0].size(0);
    const RowSum rows{at::cat({grads[0], grads[0] * 2, grads[0] * 3}),
                      at::arange(tokens * kTopK, at::kInt).view({kTopK, tokens}).t().contiguous()};
    if (!place.d_x) return {summed(rows), Tensor()};
    place.d_x->put(rows);
    return {Tensor(), Tensor()};
  }
};

template <class Op = Giver>
Tensor read(const Tensor& x, std::uint32_t output = 0) {
  auto place = c10::make_intrusive<Place>();
  const auto found = row_gradient_of<Op>(x, output);
  if (found && found->claim()) place->d_x = found;
  return Reader::apply(x, place);
}

struct GraphCase {
  const char* name;
  int taken;  // how often rows go to the giver
  std::function<Tensor(const Tensor&)> run;
};
const std::vector<GraphCase> kGraphs = {
    {"the only reader", 1, [](const Tensor& x) { return read(Giver::apply(x)); }},
    {"beside a product", 1,
     [](const Tensor& x) {
       const Tensor y = Giver::apply(x);
       return read(y) * y;
     }},
    {"two readers", 1,
     [](const Tensor& x) {
       const Tensor y = Giver::apply(x);
       return read(y) * read(y);
     }},
    {"through a view", 0, [](const Tensor& x) { return read(at::alias(Giver::apply(x))); }},
    {"after another op", 0, [](const Tensor& x) { return read(Giver::apply(x).square()); }},
    {"a leaf", 0, [](const Tensor& x) { return read(x); }},
    {"one after the other", 2, [](const Tensor& x) { return read(Giver::apply(read(Giver::apply(x)).sin())); }},
    {"not in the loss", 0,
     [](const Tensor& x) {
       const Tensor y = Giver::apply(x);
       read(y);
       return y * 3;
     }},
    {"handed on", 1,
     [](const Tensor& x) {
       const variable_list y = Passer::apply(x.square());
       return read<Passer>(y[1], 1) * y[0];
     }},
    {"handed on, beside a product", 1,
     [](const Tensor& x) {
       const variable_list y = Passer::apply(x.square());
       return read<Passer>(y[1], 1) * y[0] * y[1];
     }},
    {"the other output", 0,
     [](const Tensor& x) {
       const variable_list y = Passer::apply(x.square());
       return read<Passer>(y[0], 1) * y[1];
     }},
    {"computed again", 1,
     [](const Tensor& x) {
       return recompute({x}, [](const std::vector<Tensor>& in) -> std::vector<Tensor> {
         const Tensor y = Giver::apply(in[0]);
         return {read(y) * y};
       })[0];
     }},
};

TEST(RowGradient, ReachesTheOpThatGaveOutTheInput) {
  for (const GraphCase& c : kGraphs)
    for (const int passes : {1, 2}) {
      const Tensor x = random({7, 8}, 1, at::kDouble).requires_grad_(true), seed = random({7, 8}, 2, at::kDouble);
      const Tensor out = c.run(x);
      rows_taken = 0;
      for (int pass = 0; pass < passes; ++pass) torch::autograd::backward({out}, {seed}, /*retain_graph=*/true);
      // By differences: every op here is smooth.
      const at::NoGradGuard no_grad;
      const Tensor step = random({7, 8}, 3, at::kDouble);
      const double h = 1e-6,
                   want = passes * ((c.run(x + h * step) - c.run(x - h * step)) / (2 * h) * seed).sum().item<double>();
      EXPECT_NEAR((x.grad() * step).sum().item<double>(), want, 1e-6 * (1 + std::fabs(want))) << c.name;
      EXPECT_EQ(rows_taken, passes * c.taken) << c.name;
    }
}

struct LayerCase {
  const char* name;
  int experts, top_k;
  std::int64_t tokens, width;
  bool shared, recompute_experts, recompute_all;
};
const std::vector<LayerCase> kLayers = {
    {"the norm", 8, 2, 77, 64, false, false, false},
    {"the norm, top 1", 8, 1, 64, 768, false, false, false},
    {"the norm beside shared experts", 8, 2, 131, 72, true, false, false},
    {"the norm, 16 experts", 16, 5, 131, 72, true, false, false},
    {"the norm, experts computed again", 8, 2, 77, 64, false, true, false},
    {"the norm, all computed again", 8, 3, 77, 64, true, false, true},
    {"the norm, 32 experts", 32, 4, 131, 72, false, false, false},
    {"the norm, 32 experts, all computed again", 32, 4, 77, 72, true, false, true},
    {"a router's product of its own", 40, 4, 131, 72, false, false, false},
};

// Everything that has a gradient; `apart` puts a view between the input and the experts, so that these sum their rows.
std::vector<Tensor> gradients(const LayerCase& c, at::Device device, at::ScalarType type, bool apart) {
  ParameterStore store;
  const Init init{Init::Kind::kNormal, 0.3};
  const Parameter& router = store.add("router", ParameterKind::kRouter, {c.experts, c.width}, init);
  const Parameter& up = store.add("up", ParameterKind::kExpert, {c.experts, 24, c.width}, init);
  const Parameter& down = store.add("down", ParameterKind::kExpert, {c.experts, c.width, 24}, init);
  store.allocate(device, type, store.contiguous());
  store.initialize(5);
  const auto draw = [&](std::uint64_t seed) { return random({c.tokens, c.width}, seed).to(device, type); };
  const Tensor x = draw(1).requires_grad_(true), delta = draw(2).requires_grad_(true), factor = draw(3);
  const GroupedProducts& products = GroupedProducts::choose(device, type);
  const auto layer = [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
    const Normed n = add_norm(in[0], in[1], Tensor(), Residual{nullptr, nullptr, 0, nullptr, 1e-6, &router});
    const RouterScores scores = router_scores(n.logits_TE, {}, RoutingRule{c.top_k});
    const Tensor read = apart ? at::alias(n.n_TD) : n.n_TD;
    const Tensor routed =
        moe_ffn(read, scores.weight_TK, {&up, &down, ActivationKind::kRelu2},
                dispatch(scores.expert_TK, c.experts, products.alignment(scores.expert_TK.numel(), c.experts)),
                products, {c.recompute_experts});
    const auto place = row_gradient_before(n.n_TD);
    EXPECT_EQ(place != nullptr, device.is_cuda() && c.experts <= 32) << c.name;
    if (place) { EXPECT_EQ(place->claim(), apart) << c.name; }
    return {n.x_TD, c.shared ? routed + n.n_TD * factor : routed};
  };
  const std::vector<Tensor> out = c.recompute_all ? recompute({x, delta}, layer) : layer({x, delta});
  torch::autograd::backward({out[0], out[1]}, {draw(4), draw(5)});
  return {out[1].detach(), x.grad(), delta.grad(), router.grad, up.grad, down.grad};
}

TEST(RowGradient, OfExpertsIsThatOfAPassOfItsOwn) {
  std::vector<at::Device> devices{at::kCPU};
  if (at::hasCUDA()) devices.push_back(at::Device(at::kCUDA, 0));
  for (const at::Device device : devices)
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
      for (const LayerCase& c : kLayers) {
        if (device.is_cpu() && type == at::kBFloat16) continue;
        const auto got = gradients(c, device, type, false), want = gradients(c, device, type, true);
        const double bound = device.is_cpu() ? 0 : type == at::kFloat ? 1e-6 : 1e-2;
        for (std::size_t i = 0; i < got.size(); ++i) {
          const Tensor a = got[i].to(at::kCPU, at::kDouble), b = want[i].to(at::kCPU, at::kDouble);
          EXPECT_GT(b.norm().item<double>(), 0) << c.name << " result " << i;
          EXPECT_LE(((a - b).norm() / b.norm()).item<double>(), bound) << c.name << " result " << i;
        }
      }
}

}  // namespace
}  // namespace switchyard::ops
