#include "train/train_step.h"

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "base/error.h"

namespace switchyard {
namespace {

int index_of(at::Device device) { return device.is_cuda() ? device.index() : -1; }

}  // namespace

TrainStep::TrainStep(Gpt& model, DataParallel& parallel, Optimizer& optimizer, StepScalars& scalars,
                     const Config& config, at::Device device, std::int64_t micro_batches, bool capture)
    : model_(model),
      parallel_(parallel),
      optimizer_(optimizer),
      scalars_(scalars),
      config_(config),
      device_(device),
      micro_batches_(micro_batches) {
  const std::int64_t sequences = config.train.micro_batch, tokens = sequences * config.model.seq_len;
  const auto longs = at::TensorOptions().device(device).dtype(at::kLong);
  tokens_ = at::zeros({tokens}, longs);
  targets_ = at::zeros({tokens}, longs);
  windows_ = at::zeros({sequences}, longs);
  step_loss_ = at::zeros({1}, longs.dtype(at::kFloat));
  interval_.loss = at::zeros({1}, longs.dtype(at::kFloat));

  context_.training = true;
  context_.seq_len = config.model.seq_len;
  context_.loss_scale = 1.0 / static_cast<double>(micro_batches * parallel.ranks());
  context_.data_ranks = parallel.ranks();
  context_.dropout = {static_cast<std::uint64_t>(config.train.seed), scalars.step, windows_, config.model.seq_len};
  if (parallel.ranks() > 1) {
    sum_counts_ = [this](const at::Tensor& counts) {
      return parallel_.sum_counts(counts, current_stream_of(index_of(device_)));
    };
    context_.sum_over_ranks = [this](const at::Tensor& values) {
      at::Tensor sum = values.to(at::kFloat).contiguous().clone();
      parallel_.all_reduce(sum, current_stream_of(index_of(device_)));
      return sum.to(values.scalar_type());
    };
  }

  inner_ = std::make_unique<Replay>([this] { forward_backward(); }, capture);
  last_ = std::make_unique<Replay>(
      [this] {
        parallel_.arm(current_stream_of(index_of(device_)));
        forward_backward();
        parallel_.finish_reduction(current_stream_of(index_of(device_)));
      },
      capture);
  update_ = std::make_unique<Replay>([this] { apply_update(); }, capture);
}

TrainStep::~TrainStep() = default;

void TrainStep::load(const Batch& batch) {
  // One thread fills the pinned memory: ATen would wake all of them for half a megabyte, 8 ms on a GPU box.
  const auto copy = [&](const auto& values, const at::Tensor& target) {
    const at::Tensor host =
        at::empty(target.sizes(), at::TensorOptions().dtype(at::kLong).pinned_memory(device_.is_cuda()));
    std::copy(values.begin(), values.end(), host.data_ptr<std::int64_t>());
    at::Tensor(target).copy_(host, /*non_blocking=*/true);
  };
  copy(batch.inputs, tokens_);
  copy(batch.targets, targets_);
  copy(batch.windows, windows_);
}

void TrainStep::micro_batch(const Batch& batch, std::int64_t index) {
  SWITCHYARD_ASSERT(*std::min_element(batch.targets.begin(), batch.targets.end()) >= 0,
                    "a training target is to be ignored, but the loss is a mean over all");
  load(batch);
  const bool reduces = parallel_.ranks() > 1 && index + 1 == micro_batches_;
  // Steps that average all experts launch other kernels than those after them.
  if (averages_experts(config_.moe, model_.step())) return (reduces ? last_ : inner_)->run_apart();
  if (reduces) return last_->run();
  // A graph keeps its memory: were it recorded before the last micro-batch, of which a step has one, has run eagerly,
  // that one's activations would be held a second time beside it.
  inner_->run(parallel_.ranks() == 1 || last_->warm());
}

void TrainStep::look_again(Watch watch) {
  at::NoGradGuard no_grad;
  StepContext context;
  context.seq_len = context_.seq_len;
  context.watch = std::move(watch);
  model_.forward(tokens_, targets_, context);
}

void TrainStep::forward_backward() {
  const ModelOutput output = model_.forward(tokens_, targets_, context_);
  torch::autograd::backward({output.total}, {});
  at::NoGradGuard no_grad;
  step_loss_.add_(output.nll_T.mean(), context_.loss_scale);
}

void TrainStep::update() {
  update_->run();
  ++interval_.steps;
}

void TrainStep::apply_update() {
  at::NoGradGuard no_grad;
  void* stream = current_stream_of(index_of(device_));
  parallel_.all_reduce(step_loss_, stream);
  guard_step(scalars_, parallel_.sum_of_squares(stream), step_loss_, config_.optim.clip_norm);
  optimizer_.step(scalars_);
  parallel_.share_updates(stream);
  model_.finish_step(scalars_.apply, sum_counts_);
  interval_.loss.add_(step_loss_);
  step_loss_.zero_();
  model_.store().zero_grad();
}

}  // namespace switchyard
