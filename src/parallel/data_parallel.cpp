#include "parallel/data_parallel.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "kernels/step_guard.h"
#include "optim/parameter_groups.h"

namespace switchyard {
namespace {

// Backward completes the model from its end: the head first, then the blocks from last to first, the tables last.
std::vector<LayoutParameter> describe_parameters(const ParameterStore& store, const Config& config) {
  std::vector<LayoutParameter> list;
  int ready = static_cast<int>(store.all().size());
  for (const auto& p : store.all()) {
    LayoutParameter entry;
    entry.name = p->name;
    entry.ready = ready--;
    const bool muon = group_rule(*p, config).muon;
    if (muon && p->shape.size() == 3) {
      entry.division = Division::kStack;
      entry.matrices.assign(static_cast<std::size_t>(p->shape[0]), MatrixSize{p->shape[1], p->shape[2]});
    } else if (muon) {
      entry.division = Division::kWhole;
      for (const std::int64_t rows : p->row_split) entry.matrices.push_back({rows, p->shape[1]});
    } else {
      entry.matrices.push_back({1, p->count()});
    }
    list.push_back(std::move(entry));
  }
  return list;
}

std::int64_t bucket_bytes(const Config& config) {
  return static_cast<std::int64_t>(config.parallel.bucket_mib * 1048576.0);
}

}  // namespace

DataParallel::DataParallel(ParameterStore& store, const Config& config, Collectives* collectives)
    : store_(store),
      config_(config),
      collectives_(collectives && collectives->size() > 1 ? collectives : nullptr),
      shard_(config.parallel.shard_optimizer),
      overlap_(config.parallel.overlap),
      layout_(describe_parameters(store, config), collectives_ ? collectives_->size() : 1, bucket_bytes(config)) {
  for (std::size_t i = 0; i < store.all().size(); ++i) index_[store.all()[i].get()] = static_cast<int>(i);
}

Placement DataParallel::placement() const {
  Placement placement;
  for (std::size_t i = 0; i < store_.all().size(); ++i) placement.offset.push_back(layout_.offset(static_cast<int>(i)));
  placement.total = layout_.buffer_elements();
  return placement;
}

std::vector<OwnedSlice> DataParallel::owned() const {
  std::vector<OwnedSlice> slices;
  if (!collectives_ || !shard_) {
    for (const auto& parameter : store_.all()) slices.push_back({parameter.get(), 0, parameter->count()});
    return slices;
  }
  for (const OwnedPart& part : layout_.parts_of_rank(collectives_->rank()))
    slices.push_back({store_.all()[static_cast<std::size_t>(part.parameter)].get(), part.begin, part.count});
  return slices;
}

void DataParallel::attach() {
  if (store_.flat_grad.is_cuda()) list_gradients();
  if (!collectives_) return;
  for (const auto& parameter : store_.all()) parameter->on_ready = [this](const Parameter& ready) { on_ready(ready); };
}

void DataParallel::arm(CommStream stream) {
  if (!collectives_) return;
  armed_ = true;
  stream_ = stream;
  next_bucket_ = 0;
  pending_.clear();
  missing_.clear();
  for (const Bucket& bucket : layout_.buckets()) missing_.push_back(static_cast<int>(bucket.parameters.size()));
}

void DataParallel::on_ready(const Parameter& parameter) {
  if (!armed_) return;
  --missing_[static_cast<std::size_t>(layout_.bucket_of(index_.at(&parameter)))];
  while (overlap_ && next_bucket_ < missing_.size() && missing_[next_bucket_] == 0) start_bucket(next_bucket_++);
}

void DataParallel::start_bucket(std::size_t index) {
  const Bucket& bucket = layout_.buckets()[index];
  float* data = store_.flat_grad.data_ptr<float>() + bucket.begin;
  const auto share = static_cast<std::size_t>(bucket.share);
  if (shard_) {
    float* mine = data + bucket.share * collectives_->rank();
    pending_.push_back(collectives_->start_reduce_scatter_sum(data, mine, share, DType::kFloat32, stream_));
  } else {
    pending_.push_back(
        collectives_->start_all_reduce_sum(data, share * static_cast<std::size_t>(ranks()), DType::kFloat32, stream_));
  }
}

void DataParallel::finish_reduction(CommStream stream) {
  if (!collectives_) return;
  SWITCHYARD_ASSERT(armed_, "finish_reduction without arm");
  stream_ = stream;
  while (next_bucket_ < missing_.size()) start_bucket(next_bucket_++);
  for (Pending& operation : pending_) operation.wait(stream);
  pending_.clear();
  armed_ = false;
}

// Each gradient is counted by one rank: by its owner, and where all hold the same sums, by every rank for itself.
void DataParallel::list_gradients() {
  std::vector<kernels::SquareRange> ranges;
  const float* flat = store_.flat_grad.data_ptr<float>();
  if (!collectives_ || !shard_)
    ranges.push_back({flat, store_.flat_grad.numel()});
  else
    for (const Bucket& bucket : layout_.buckets())
      ranges.push_back({flat + bucket.begin + bucket.share * collectives_->rank(), bucket.share});
  for (const kernels::SquareRange& range : ranges) longest_range_ = std::max(longest_range_, range.count);
  gradient_range_count_ = static_cast<int>(ranges.size());
  const std::size_t bytes = ranges.size() * sizeof(kernels::SquareRange);
  const at::Tensor host = at::empty({static_cast<std::int64_t>(bytes)}, at::kByte);
  std::memcpy(host.data_ptr(), ranges.data(), bytes);
  gradient_ranges_ = host.to(store_.flat_grad.device());
}

at::Tensor DataParallel::sum_of_squares(CommStream stream) {
#ifdef SWITCHYARD_WITH_CUDA
  if (gradient_ranges_.defined()) {
    const auto parts = kernels::sum_of_squares_parts(gradient_range_count_, longest_range_);
    const at::Tensor scratch = at::empty({parts}, store_.flat_grad.options());
    const at::Tensor sum = at::empty({1}, store_.flat_grad.options());
    kernels::sum_of_squares({static_cast<const kernels::SquareRange*>(gradient_ranges_.data_ptr()),
                             gradient_range_count_, longest_range_, scratch.data_ptr<float>(), sum.data_ptr<float>()},
                            static_cast<kernels::Stream>(stream));
    if (shard_) all_reduce(sum, stream);
    return sum;
  }
#endif
  if (!collectives_ || !shard_) return at::linalg_vector_norm(store_.flat_grad).square().reshape({1});
  at::Tensor sum = at::zeros({1}, store_.flat_grad.options());
  for (const Bucket& bucket : layout_.buckets()) {
    const at::Tensor share =
        store_.flat_grad.narrow(0, bucket.begin + bucket.share * collectives_->rank(), bucket.share);
    sum.add_(at::linalg_vector_norm(share).square());
  }
  all_reduce(sum, stream);
  return sum;
}

void DataParallel::all_reduce(const at::Tensor& values, CommStream stream) {
  if (collectives_)
    collectives_->all_reduce_sum(values.data_ptr<float>(), static_cast<std::size_t>(values.numel()), DType::kFloat32,
                                 stream);
}

at::Tensor DataParallel::sum_counts(const at::Tensor& counts, CommStream stream) {
  if (!collectives_) return counts;
  // fp32 holds integers up to 2^24: parts of 12 and 24 bits stay exact, the lower one among 4096 ranks.
  const at::Tensor parts =
      at::stack({counts.bitwise_and(0xFFF), counts.bitwise_right_shift(12)}).to(at::kFloat).contiguous();
  all_reduce(parts, stream);
  const at::Tensor whole = parts.to(at::kLong);
  return whole[0] + whole[1] * 4096;
}

void DataParallel::share_updates(CommStream stream) {
  if (!collectives_ || !shard_) return;
  std::vector<Pending> gathers;
  for (const Bucket& bucket : layout_.buckets()) {
    // A bucket whose parameters are all read in fp32 travels as masters; copies of the others are gathered in their
    // type.
    bool masters = !store_.flat_compute.defined(), copies = !masters;
    for (const int p : bucket.parameters)
      masters = masters || computes_in_fp32(store_.all()[static_cast<std::size_t>(p)]->kind);
    const auto gather = [&](const at::Tensor& flat) {
      const std::size_t bytes = static_cast<std::size_t>(bucket.share) * flat.element_size();
      char* data = static_cast<char*>(flat.data_ptr()) + bucket.begin * static_cast<std::int64_t>(flat.element_size());
      gathers.push_back(collectives_->start_all_gather(data + bytes * static_cast<std::size_t>(collectives_->rank()),
                                                       data, bytes, stream));
    };
    if (copies) gather(store_.flat_compute);
    if (masters) gather(store_.flat_master);
  }
  for (Pending& operation : gathers) operation.wait(stream);
}

void DataParallel::all_gather_flat(const at::Tensor& flat, CommStream stream) {
  for (const Bucket& bucket : layout_.buckets()) {
    const std::size_t bytes = static_cast<std::size_t>(bucket.share) * flat.element_size();
    char* data = static_cast<char*>(flat.data_ptr()) + bucket.begin * static_cast<std::int64_t>(flat.element_size());
    collectives_->all_gather(data + bytes * static_cast<std::size_t>(collectives_->rank()), data, bytes, stream);
  }
}

void DataParallel::gather_masters(CommStream stream) {
  if (collectives_ && shard_) all_gather_flat(store_.flat_master, stream);
}

std::vector<std::pair<std::string, at::Tensor>> DataParallel::gather_states(const std::vector<OptimizerState>& states,
                                                                            CommStream stream) {
  std::vector<std::pair<std::string, at::Tensor>> whole;
  for (const char* kind : {"first", "second"}) {
    at::Tensor flat = at::zeros_like(store_.flat_master);
    for (const OptimizerState& state : states) {
      if (state.kind != kind) continue;
      const int p = index_.at(state.slice.parameter);
      flat.narrow(0, layout_.offset(p) + state.slice.begin, state.slice.count).copy_(state.values);
    }
    if (collectives_ && shard_) all_gather_flat(flat, stream);
    const at::Tensor host = flat.cpu();
    for (std::size_t p = 0; p < store_.all().size(); ++p) {
      const Parameter& parameter = *store_.all()[p];
      const bool moments = !group_rule(parameter, config_).muon || config_.optim.muon.variance_reduction;
      if (kind == std::string("second") && !moments) continue;
      whole.emplace_back(
          parameter.name + "." + kind,
          host.narrow(0, layout_.offset(static_cast<int>(p)), parameter.count()).view(parameter.shape).clone());
    }
  }
  return whole;
}

}  // namespace switchyard
