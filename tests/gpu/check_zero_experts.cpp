// Experts without products, forward and backward, against the kernels' CPU forms in double.
#include <algorithm>

#include "harness.h"
#include "kernels/zero_experts.h"

namespace switchyard::gpu_check {
namespace {

// Columns: 4 experts with products, `zero` that give 0, `copy` and `constant` ones, and a constant that dropped
// assignments go to where of_dropped says so.
struct ZeroCase {
  const char* name;
  int tokens, width, top_k, zero, copy, constant;
  int of_dropped;
  int certain;  // the column of every assignment; -1: drawn
};
const std::vector<ZeroCase> kZeroCases = {
    {"no tokens", 0, 8, 2, 1, 1, 1, kernels::kNoZeroExpert, -1},
    {"one token, a copy", 1, 8, 1, 0, 1, 0, kernels::kNoZeroExpert, 4},
    {"one token, a constant", 1, 8, 1, 0, 0, 1, kernels::kNoZeroExpert, 4},
    {"copies", 333, 264, 2, 1, 2, 0, kernels::kNoZeroExpert, -1},
    {"constants", 333, 264, 3, 0, 0, 3, kernels::kNoZeroExpert, -1},
    {"all kinds, 16 a token", 133, 520, 16, 2, 2, 5, kernels::kNoZeroExpert, -1},
    {"dropped are copied", 333, 768, 2, 0, 0, 0, kernels::kCopy, -1},
    {"dropped go to a constant", 333, 768, 8, 0, 0, 0, kernels::kConstant, -1},
    {"dropped go to the last constant", 333, 256, 8, 1, 1, 2, kernels::kConstant + 2, -1},
    {"none is chosen", 333, 256, 2, 0, 1, 1, kernels::kNoZeroExpert, 0},
    {"every assignment to one constant", 333, 2064, 4, 0, 0, 2, kernels::kNoZeroExpert, 5},
    {"40 constants", 65, 64, 2, 0, 0, 40, kernels::kNoZeroExpert, -1},
    {"8x2", 65536, 768, 2, 0, 1, 1, kernels::kNoZeroExpert, -1},
};

struct ZeroInputs {
  std::vector<int> expert;
  std::vector<unsigned char> dropped;
  Values x, dy, weight, map, vector, d_x, d_weight, out;
  int constants;
};

ZeroInputs inputs_of(const ZeroCase& c) {
  Random random(79);
  const std::size_t R = static_cast<std::size_t>(c.tokens) * c.top_k,
                    size = static_cast<std::size_t>(c.tokens) * c.width;
  ZeroInputs in;
  in.constants = std::max(c.constant, c.of_dropped - kernels::kConstant + 1);
  in.expert.resize(R), in.dropped.resize(R);
  for (std::size_t i = 0; i < R; ++i) {
    in.expert[i] = c.certain >= 0 ? c.certain : random.below(4 + c.zero + c.copy + c.constant);
    in.dropped[i] = c.of_dropped != kernels::kNoZeroExpert && in.expert[i] < 4 && random.below(5) < 2;
    if (in.dropped[i]) in.expert[i] = -1;
  }
  const std::size_t J = in.constants, D = c.width;
  in.x = random.normal(size), in.dy = random.normal(size), in.weight = random.normal(R);
  in.map = random.normal(J * 2 * D, 1 / std::sqrt(static_cast<double>(D))), in.vector = random.normal(J * D);
  in.d_x = random.normal(size), in.d_weight = random.normal(R), in.out = random.normal(size);
  return in;
}

template <class T>
void check_zero(Report& report, const ZeroCase& c) {
  const ZeroInputs in = inputs_of(c);
  const int T_ = c.tokens, K = c.top_k, D = c.width, J = in.constants;
  const Buffer<int> expert(in.expert);
  const Buffer<unsigned char> dropped(in.dropped);
  const Input<T> x(in.x), dy(in.dy), out(in.out), d_x(in.d_x);
  const Input<float> weight(in.weight), map(in.map), vector(in.vector), d_weight(in.d_weight);
  Buffer<float> coefficient(static_cast<std::size_t>(J) * T_ * 2), scratch(kernels::zero_expert_scratch(T_, D, J));
  const Input<float> sums(Values(static_cast<std::size_t>(J) * 2 * D));
  const auto choice = [&](const int* e, const unsigned char* d) {
    const int first_copy = 4 + c.zero, first_constant = first_copy + c.copy;
    return kernels::ZeroExpertChoice{
        e,
        c.of_dropped == kernels::kNoZeroExpert ? nullptr : reinterpret_cast<const bool*>(d),
        first_copy,
        first_constant,
        first_constant + c.constant,
        c.of_dropped};
  };
  const auto on_device = choice(expert.get(), dropped.get());
  run_captured([&](Stream s) {
    kernels::zero_experts(
        kernels::ZeroExperts<T>{on_device, x.get(), weight.get(), map.get(), vector.get(), out.get(), T_, K, D, J}, s);
    kernels::zero_experts_backward(
        kernels::ZeroExpertsBackward<T>{on_device, x.get(), dy.get(), weight.get(), map.get(), vector.get(), d_x.get(),
                                        d_weight.get(), coefficient.get(), T_, K, D, J},
        s);
    kernels::zero_expert_sums(
        kernels::ZeroExpertSums<T>{x.get(), dy.get(), coefficient.get(), sums.get(), scratch.get(), T_, D, J}, s);
  });

  Values want_out = out.host, want_d_x = d_x.host, want_d_weight = d_weight.host,
         want_coefficient(static_cast<std::size_t>(J) * T_ * 2), want_sums(static_cast<std::size_t>(J) * 2 * D);
  const auto on_host = choice(in.expert.data(), in.dropped.data());
  kernels::zero_experts_cpu(kernels::ZeroExperts<double>{on_host, x.host.data(), weight.host.data(), map.host.data(),
                                                         vector.host.data(), want_out.data(), T_, K, D, J},
                            {0, T_});
  kernels::zero_experts_backward_cpu(
      kernels::ZeroExpertsBackward<double>{on_host, x.host.data(), dy.host.data(), weight.host.data(), map.host.data(),
                                           vector.host.data(), want_d_x.data(), want_d_weight.data(),
                                           want_coefficient.data(), T_, K, D, J},
      {0, T_});
  kernels::zero_expert_sums_cpu(kernels::ZeroExpertSums<double>{x.host.data(), dy.host.data(), want_coefficient.data(),
                                                                want_sums.data(), nullptr, T_, D, J},
                                {0, J});
  const std::string kernel = "zero_experts " + type_name<T>(), backward = "zero_experts_backward " + type_name<T>(),
                    name = c.name;
  // Sums of tokens: of values that a coefficient off by rounding multiplies.
  const double scale = std::sqrt(static_cast<double>(T_) + 1);
  report.compare(kernel, name, values_of(out.device), want_out, bound_of<T>(10));
  report.compare(backward, name + ": d_x", values_of(d_x.device), want_d_x, bound_of<T>(10));
  report.compare(backward, name + ": d_weight", values_of(d_weight.device), want_d_weight, {1e-4, 1e-3});
  report.compare(backward, name + ": coefficient", values_of(coefficient), want_coefficient, {1e-4, 1e-3});
  report.compare(backward, name + ": sums", values_of(sums.device), want_sums, {1e-4, 1e-3 * scale});
  report.expect(kernel, name + ": writes stay inside", out.device.guard_intact());
  report.expect(backward, name + ": writes stay inside",
                d_x.device.guard_intact() && d_weight.device.guard_intact() && coefficient.guard_intact() &&
                    scratch.guard_intact() && sums.device.guard_intact());
  // Written again, the same bits: nothing depends on the order in which blocks end.
  Buffer<float> again(want_sums.size());
  SWITCHYARD_CUDA(cudaMemset(again.get(), 0, want_sums.size() * sizeof(float)));
  run_captured([&](Stream s) {
    kernels::zero_expert_sums(
        kernels::ZeroExpertSums<T>{x.get(), dy.get(), coefficient.get(), again.get(), scratch.get(), T_, D, J}, s);
  });
  report.compare(backward, name + ": sums again", values_of(again), values_of(sums.device), kExact);
}

}  // namespace

void check_zero_experts(Report& report) {
  for (const ZeroCase& c : kZeroCases) check_zero<bf16>(report, c), check_zero<float>(report, c);
}

}  // namespace switchyard::gpu_check
