#include "ops/hidden_dropout.h"

#include "kernels/dropout.h"
#include "ops/launch.h"

namespace switchyard::ops {

Tensor assignment_ids(const DropoutKey& key, std::int64_t tokens, int top_k) {
  const auto longs = key.window_B.options().dtype(at::kLong);
  const Tensor place_BS = key.window_B.unsqueeze(1) * key.seq_len + at::arange(key.seq_len, longs);
  return place_BS.view({tokens, 1}) * top_k + at::arange(top_k, longs);
}

Tensor ids_to_rows(const Tensor& id_TK, const DispatchPlan& plan) {
  const std::int64_t rows = plan.row_capacity;  // one more takes the assignments without a row
  const Tensor row = at::where(plan.row_of_TK.ge(0), plan.row_of_TK, rows).to(at::kLong);
  return at::full({rows + 1}, -1, id_TK.options()).scatter_(0, row.view(-1), id_TK.view(-1)).narrow(0, 0, rows);
}

void drop_hidden_(const Tensor& rows_RN, const Tensor& id_R, const Tensor& row_count, const HiddenDropout& dropout) {
  launch(
      rows_RN,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::RowDropout<T>{pointer<T>(rows_RN),
                                      id_R.data_ptr<std::int64_t>(),
                                      row_count.data_ptr<int>(),
                                      dropout.key.step.data_ptr<std::int64_t>(),
                                      dropout.key.seed,
                                      dropout.site,
                                      rows_RN.size(0),
                                      static_cast<int>(rows_RN.size(1)),
                                      static_cast<float>(dropout.p)};
      },
      [](const auto& work, kernels::Stream stream) { kernels::row_dropout(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.rows, 16, [&](kernels::Range range) { kernels::row_dropout_cpu(work, range); });
      });
}

}  // namespace switchyard::ops
