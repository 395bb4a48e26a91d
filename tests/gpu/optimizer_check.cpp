// Muon's kernel path against its plain ATen path on a GPU, Polar Express against exact arithmetic, then the time of a
// whole optimizer step of configs/moe_8x2.json.
//   optimizer_check          comparisons and timings;   optimizer_check --no-timings   comparisons alone
// Exit status: 0 all passed, 1 some failed, 77 no GPU (the test is skipped).
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdio>
#include <string>

#include "kernels/device.h"
#include "optim/adamw.h"
#include "optim/muon.h"
#include "optim/polar_batch.h"
#include "optim/polar_express.h"
#include "parallel/data_parallel.h"
#include "train/replay.h"

using namespace switchyard;

namespace {

const at::Device kGpu(at::kCUDA, 0);
int failures = 0;

void expect(const std::string& what, bool holds) {
  if (!holds) ++failures;
  std::printf("%-7s %s\n", holds ? "passed" : "FAILED", what.c_str());
}

// ---- the kernel path against ATen ----

struct Case {
  const char* name;
  ParameterKind kind;
  std::vector<std::int64_t> shape, row_split;
  double condition;   // the last column's gradients are this much smaller than the first's
  double common = 0;  // the size of one direction that all gradients share
};
const std::vector<Case> kCases = {
    {"square, joint q, k, v", ParameterKind::kAttention, {2304, 768}, {768, 768, 768}, 1},
    {"experts, tall", ParameterKind::kExpert, {8, 1536, 768}, {}, 1},
    {"experts, wide", ParameterKind::kExpert, {8, 768, 1536}, {}, 1},
    {"tall, badly conditioned", ParameterKind::kExpert, {3, 1536, 768}, {}, 1e-3},
    {"wide, badly conditioned", ParameterKind::kExpert, {3, 768, 1536}, {}, 1e-3},
    {"gated stack, two matrices an expert", ParameterKind::kExpert, {4, 512, 320}, {256, 256}, 1},
    {"many small ones, several turns of a chain", ParameterKind::kExpert, {300, 64, 136}, {}, 1},
    {"router: few rows, no copy", ParameterKind::kRouter, {8, 768}, {}, 1},
    {"more rows than fit a tile", ParameterKind::kMlp, {1000, 328}, {}, 1},
    {"odd sizes", ParameterKind::kMlp, {37, 131}, {}, 1},
    {"very tall", ParameterKind::kMlp, {4096, 256}, {}, 0.1},
    {"one direction above all, as of positive activations", ParameterKind::kMlp, {768, 3072}, {}, 1, 0.1},
    {"one direction above all, square", ParameterKind::kAttention, {768, 768}, {}, 1e-2, 0.1},
};

enum class Path { kKernels, kAtenBf16, kAtenFp32 };

// One parameter and its optimizer; the same numbers whatever the path.
struct Problem {
  ParameterStore store;
  Parameter& parameter;
  MuonConfig config;
  StepScalars scalars{kGpu};
  std::unique_ptr<Muon> muon;
  at::Tensor before;

  Problem(const Case& c, Path path)
      : parameter(store.add("w", c.kind, c.shape, {Init::Kind::kUniform, 0.03}, c.row_split)) {
    store.allocate(kGpu, at::kBFloat16, store.contiguous());
    store.initialize(7);
    before = parameter.master.clone();
    const std::vector<OwnedSlice> slices = {{&parameter, 0, parameter.count()}};
    muon = std::make_unique<Muon>(slices, config, path == Path::kAtenFp32 ? at::kFloat : at::kBFloat16,
                                  /*reference=*/path != Path::kKernels);
  }

  // Three steps, so that momentum matters. The first matrix of a stack has no gradient at all.
  void run(const Case& c) {
    at::manual_seed(11);
    const at::Tensor scale = at::logspace(0, std::log10(c.condition), c.shape.back(), 10.0, before.options());
    for (int step = 0; step < 3; ++step) {
      const at::Tensor one = at::randn({c.shape[c.shape.size() - 2], 1}, before.options()).pow(3) *
                             at::rand({c.shape.back()}, before.options()).pow(2);
      parameter.grad.copy_((at::randn(c.shape, before.options()) * scale + one * (c.common / 1e-3)) * 1e-3);
      if (c.shape.size() == 3) parameter.grad[0].zero_();
      scalars.set_schedule(step, 0.7, 0.9, 0.5);
      scalars.grad_factor.fill_(0.5);
      muon->step(scalars);
    }
  }
  at::Tensor change() const { return parameter.master - before; }
};

double distance(const at::Tensor& got, const at::Tensor& want) {
  return ((got - want).norm() / want.norm().clamp_min(1e-30)).item<double>();
}

void compare(const Case& c) {
  at::NoGradGuard no_grad;
  Problem kernels(c, Path::kKernels), aten(c, Path::kAtenBf16), exact(c, Path::kAtenFp32);
  for (Problem* problem : {&kernels, &aten, &exact}) problem->run(c);
  const double error = distance(kernels.change(), exact.change()), usual = distance(aten.change(), exact.change());
  char line[160];
  std::snprintf(line, sizeof line, "%s: off the fp32 update by %.4f, plain ATen in bf16 by %.4f", c.name, error, usual);
  expect(line, error <= 1.25 * usual + 1e-3);
  const std::string name = c.name;
  expect(name + ": momentum", distance(kernels.muon->states()[0].values, exact.muon->states()[0].values) < 1e-6);
  if (c.kind != ParameterKind::kRouter)
    expect(name + ": the copy is the rounded weight",
           at::equal(kernels.parameter.compute.detach(), kernels.parameter.master.to(at::kBFloat16)));

  kernels.parameter.grad.fill_(NAN);
  kernels.scalars.apply.zero_();
  const at::Tensor weight = kernels.parameter.master.clone(), copy = kernels.parameter.compute.detach().clone();
  const at::Tensor momentum = kernels.muon->states()[0].values.clone();
  kernels.muon->step(kernels.scalars);
  expect(name + ": a step that is not applied stores nothing",
         at::equal(weight, kernels.parameter.master) && at::equal(copy, kernels.parameter.compute.detach()) &&
             at::equal(momentum, kernels.muon->states()[0].values));
}

// ---- Polar Express in fp16 against exact arithmetic ----

struct PolarCase {
  const char* name;
  std::int64_t rows, columns;
  double power;  // column i is i^-power as large as the first
  double bound;  // relative; emulated it is 0.001 to 0.003, 0.006 for the odd sizes
  int copies = 1;
  int iterations = MuonConfig{}.iterations;
};
const std::vector<PolarCase> kPolarCases = {
    {"square", 768, 768, 0, 0.01},
    {"wide", 768, 1536, 0, 0.01},
    {"tall", 1536, 768, 0, 0.01},
    {"wide, falling", 768, 1536, 1, 0.01},
    {"tall, falling", 1536, 768, 1, 0.01},
    {"a tile and a bit", 264, 520, 0, 0.01},
    {"odd sizes", 100, 37, 0, 0.02},
    {"many, wide", 768, 1536, 0, 0.01, 12},
    {"many, tall", 1536, 768, 1, 0.01, 12},
    {"many, square", 768, 768, 0, 0.01, 16},
    {"more products than a chain has", 264, 520, 0, 0.01, 1, 4},
};

void compare_polar(const PolarCase& c) {
  at::manual_seed(13);
  at::Tensor u =
      at::randn({3, c.rows, c.columns}, at::kDouble) * at::arange(1, c.columns + 1, at::kDouble).pow(-c.power);
  u[1].zero_();
  u = (u / (u.norm(2, {1, 2}, true) * kPolarSafety + kPolarEpsilon)).to(at::kHalf);
  const at::Tensor many = u.repeat({c.copies, 1, 1});
  PolarBatch batch(many.size(0), c.rows, c.columns, kGpu);
  const auto held = [&] { return at::from_blob(batch.data(), many.sizes(), at::TensorOptions(kGpu).dtype(at::kHalf)); };
  held().copy_(many);
  batch.run(many.size(0), c.iterations);
  const at::Tensor got = held().to(at::kCPU, at::kDouble);
  const at::Tensor want = polar_express(u.to(at::kDouble), c.iterations).repeat({c.copies, 1, 1});
  const double error = distance(got, want);
  char line[160];
  std::snprintf(line, sizeof line, "polar, %s: off exact arithmetic by %.4f, at most %.4f", c.name, error, c.bound);
  expect(line, error <= c.bound);
  expect(std::string("polar, ") + c.name + ": zeros stay zeros", got[1].abs().max().item<double>() == 0);
}

// ---- the time of a step ----

// The parameters of configs/moe_8x2.json.
void declare_moe_8x2(ParameterStore& store) {
  const std::int64_t D = 768, N = 1536, E = 8, V = 32768;
  const Init init{Init::Kind::kConstant, 0.01};
  const auto add = [&](const std::string& name, ParameterKind kind, std::vector<std::int64_t> shape,
                       std::vector<std::int64_t> row_split = {}) { store.add(name, kind, shape, init, row_split); };
  add("embed", ParameterKind::kTokenEmbedding, {V, D});
  for (int layer = 0; layer < 12; ++layer) {
    const std::string name = "layer" + std::to_string(layer);
    if (layer % 2 == 1) add(name + ".value_embed", ParameterKind::kValueEmbedding, {V, D});
    if (layer % 2 == 1) add(name + ".value_gate", ParameterKind::kValueGate, {12, 32});
    add(name + ".qkv", ParameterKind::kAttention, {3 * D, D}, {D, D, D});
    add(name + ".out", ParameterKind::kAttention, {D, D});
    add(name + ".router", ParameterKind::kRouter, {E, D});
    add(name + ".up", ParameterKind::kExpert, {E, N, D});
    add(name + ".down", ParameterKind::kExpert, {E, D, N});
  }
  add("keep", ParameterKind::kKeepScalar, {12});
  add("again", ParameterKind::kAgainScalar, {12});
  add("head", ParameterKind::kHead, {V, D});
}

// Milliseconds of one replay of the work as a CUDA graph.
double milliseconds(const std::function<void()>& work) {
  constexpr int kRepeats = 20;
  Replay replay(work, /*capture=*/true);
  for (int i = 0; i < 6; ++i) replay.run();
  at::cuda::CUDAEvent begin(cudaEventDefault), end(cudaEventDefault);
  begin.record();
  for (int i = 0; i < kRepeats; ++i) replay.run();
  end.record();
  end.synchronize();
  return begin.elapsed_time(end) / kRepeats;
}

void time_step() {
  at::NoGradGuard no_grad;
  Config config;
  ParameterStore store;
  declare_moe_8x2(store);
  DataParallel parallel(store, config, nullptr);
  store.allocate(kGpu, at::kBFloat16, parallel.placement());
  parallel.attach();
  std::vector<OwnedSlice> matrices, elements;
  std::vector<GroupRule> rules;
  double muon_elements = 0, adamw_elements = 0;
  for (const OwnedSlice& slice : parallel.owned()) {
    const GroupRule rule = group_rule(*slice.parameter, config);
    (rule.muon ? matrices : elements).push_back(slice);
    (rule.muon ? muon_elements : adamw_elements) += static_cast<double>(slice.count);
    if (!rule.muon) rules.push_back(rule);
  }
  Muon muon(matrices, config.optim.muon, at::kBFloat16);
  AdamW adamw(elements, rules, config.optim.adamw);
  StepScalars scalars(kGpu);
  scalars.set_schedule(1, 1e-3, 0.9, 0.5);
  const at::Tensor loss = at::ones({1}, store.flat_grad.options());
  const auto fill = [&] {  // zeros would take less power than a real step
    store.flat_grad.normal_();
    store.flat_master.normal_();
  };
  void* stream = current_stream_of(0);
  const auto guard = [&] { guard_step(scalars, parallel.sum_of_squares(stream), loss, 1.0); };
  const auto print = [](const char* part, double ms, double bytes) {
    std::printf("%-44s %8.3f ms %7.0f GB/s\n", part, ms, bytes / ms * 1e-6);
  };
  fill();
  std::printf("\noptimizer step of moe_8x2: %.1fM elements by Muon, %.1fM by AdamW\n", muon_elements * 1e-6,
              adamw_elements * 1e-6);
  print("norm and guard", milliseconds(guard), 4 * (muon_elements + adamw_elements));
  print("muon (GB/s of its elementwise parts)", milliseconds([&] { muon.step(scalars); }), 30 * muon_elements);
  print("adamw", milliseconds([&] { adamw.step(scalars); }), 30 * adamw_elements);
  print("gradients to zero", milliseconds([&] { store.zero_grad(); }), 4 * (muon_elements + adamw_elements));
  fill();
  print("whole step but for the zeros", milliseconds([&] { guard(), muon.step(scalars), adamw.step(scalars); }),
        34 * (muon_elements + adamw_elements));
  print("whole step", milliseconds([&] { guard(), muon.step(scalars), adamw.step(scalars), store.zero_grad(); }),
        38 * (muon_elements + adamw_elements));
  std::printf("reserved %.2f GiB, of which parameters and states %.2f\n",
              static_cast<double>(peak_memory_bytes(0)) / (1 << 30),
              (14 * muon_elements + 18 * adamw_elements) / (1 << 30));
}

}  // namespace

int main(int argc, char** argv) {
  if (kernels::device_count() == 0) {
    std::printf("skipped: no GPU\n");
    return 77;
  }
  use_side_stream(0);
  for (const Case& c : kCases) compare(c);
  for (const PolarCase& c : kPolarCases) compare_polar(c);
  std::printf("%d failed\n", failures);
  if (argc < 2 || std::string(argv[1]) != "--no-timings") time_step();
  return failures == 0 ? 0 : 1;
}
