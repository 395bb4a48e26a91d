// Data parallel: every rank computes gradients of its own micro-batches; buckets of the gradient buffer are summed over
// ranks while backward still runs; each rank updates the matrices it owns and sends the result to the others
// (optimizer sharding, ZeRO stage 1). A world of one does none of it.
#pragma once

#include <memory>

#include "comm/collectives.h"
#include "config/config.h"
#include "optim/owned.h"
#include "parallel/layout.h"

namespace switchyard {

class DataParallel {
 public:
  // Lays the store's parameters out; call before store.allocate(placement()). collectives null: a world of one.
  DataParallel(ParameterStore& store, const Config& config, Collectives* collectives);

  Placement placement() const;
  std::vector<OwnedSlice> owned() const;  // what this rank's optimizer updates

  // After allocate, once. Reduction hooks into Parameter::on_ready; nothing happens until arm().
  void attach();
  // The next backward is the step's last: reduce each bucket when its gradients are complete.
  void arm(CommStream stream);
  // Starts what is left and waits. Afterwards this rank's shares of the gradient buffer hold the sum over ranks.
  void finish_reduction(CommStream stream);

  // [1] fp32: sum of squares of all gradients, over all ranks; and any value that must be seen by all, summed likewise.
  at::Tensor sum_of_squares(CommStream stream);
  void all_reduce(const at::Tensor& fp32_values, CommStream stream);
  // Sum over ranks of int64 counts up to 2^36, exact.
  at::Tensor sum_counts(const at::Tensor& counts, CommStream stream);

  // After the optimizer: every rank gets every compute copy (masters where the copy is the master).
  void share_updates(CommStream stream);
  // Every rank gets every master: before weights are saved.
  void gather_masters(CommStream stream);
  // The state tensors of all ranks, whole, by "<parameter>.<kind>"; collective. On the CPU.
  std::vector<std::pair<std::string, at::Tensor>> gather_states(const std::vector<OptimizerState>& states,
                                                                CommStream stream);
  // This rank's part of a whole state tensor.
  static at::Tensor slice_of(const at::Tensor& whole, const OwnedSlice& slice) {
    return whole.reshape({-1}).narrow(0, slice.begin, slice.count);
  }
  int ranks() const { return collectives_ ? collectives_->size() : 1; }

 private:
  void on_ready(const Parameter& parameter);
  void start_bucket(std::size_t bucket);
  void list_gradients();
  void all_gather_flat(const at::Tensor& flat, CommStream stream);

  ParameterStore& store_;
  const Config& config_;
  Collectives* collectives_;
  const bool shard_, overlap_;
  Layout layout_;
  std::map<const Parameter*, int> index_;
  bool armed_ = false;
  CommStream stream_ = nullptr;
  std::vector<int> missing_;     // parameters of a bucket whose gradient is not complete yet
  std::size_t next_bucket_ = 0;  // buckets start in order, the same on all ranks
  std::vector<Pending> pending_;
  at::Tensor gradient_ranges_;  // on a GPU: kernels::SquareRange of what sum_of_squares adds up on this rank
  int gradient_range_count_ = 0;
  std::int64_t longest_range_ = 0;
};

}  // namespace switchyard
