// kernels/grouped_gemm.h: products of rows in expert order with their expert's matrix, on Hopper (sm_90a), in bf16 with
// fp32 sums. One expert with null tables is a plain product of `row_capacity` rows. Other GPUs and fp32: the
// same descriptions, of T, in kernels/portable_gemm.h.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// Who owns which rows, as kernels/dispatch.h lays them out. All on the device; the host reads nothing.
struct RowGroups {
  const int* offset;         // [E+1] first row of each expert; null: one expert, all rows
  const int* count;          // [E] rows that are no padding; null: all
  const int* tile_expert;    // [row_capacity / alignment] the expert of each tile of rows; null: 0
  const int* longest_first;  // [E] experts by falling count; null: in order
  int* scheduler;            // [2] zeros before and after every product, never null; one product at a time may use it
  int experts;
  int alignment;  // of every offset, 128 or a multiple: tiles of 128 rows go in twos, best both of one expert
  std::int64_t row_capacity;  // a multiple of alignment
};

// What becomes of a product's sums h before they are stored: nothing, relu(h)^2, or silu(gate) * value.
enum class GroupedActivation { kNone, kRelu2, kSwiglu };

// A row weight of less counts as this: backward of relu^2 divides by it.
inline constexpr float kLeastRowWeight = 1e-20f;

// out[r] = rows[r] W_e^T, or row_weight[r] act(.) of it, where |row_weight| is kLeastRowWeight or more; SwiGLU's W_e
// has N rows of gates, then N of values. Rows of padding become zeros (rows must hold zeros there, or index -1). All
// widths are multiples of 8.
template <class T>
struct GroupedForwardOf {
  RowGroups groups;
  const T* rows;         // [R, K], or with an index [T, K]
  const int* row_index;  // [R] out's row r reads rows[row_index[r]], zeros for -1; null: row r
  const T* weight;       // [E, N, K], SwiGLU [E, 2N, K]
  T* out;                // [R, N]
  int inner, columns;    // K, N
  GroupedActivation activation = GroupedActivation::kNone;
  const float* row_weight = nullptr;  // [R], null: 1; read only with an activation
  T* pre = nullptr;                   // [R, 2N], SwiGLU's gates and values for backward; null: not wanted
  T* gathered = nullptr;              // [R, K], the rows that the index names; null: not wanted
};
using GroupedForward = GroupedForwardOf<bf16>;

// out[r] = rows[r] W_e, the gradient by the input of a product with W. With an activation it goes on through that and
// the router's weight: with d = rows[r] W_e and the pre-activation h,
//   out[r] = row_weight[r] act'(h) d;    dot[0..P)[r] sum to <d, act(h)>,  P = grouped_dot_parts(N)
// relu^2 needs forward's result alone, which tells |h| where h > 0. SwiGLU needs its pre-activation.
template <class T>
struct GroupedDgradOf {
  RowGroups groups;
  const T* rows;            // [R, K], or with an index [T, K]
  const int* row_index;     // [R] or null
  const T* weight;          // [E, K, N]
  T* out;                   // [R, N], SwiGLU [R, 2N]: gates, then values; not hidden's own memory
  const T* hidden;          // relu^2: forward's out [R, N]; SwiGLU: its pre [R, 2N]; else null
  const float* row_weight;  // [R], null: 1; forward's; read only with an activation
  float* dot;               // [P, R], null: not wanted; only with an activation
  int inner, columns;       // K, N
  GroupedActivation activation = GroupedActivation::kNone;
  T* gathered = nullptr;  // [R, K], the rows that the index names; null: not wanted
};
using GroupedDgrad = GroupedDgradOf<bf16>;

// grad[e] += a_e^T b_e over the expert's rows, each element by one addition; an expert without rows leaves its part
// bitwise as it was. Padding of a and b is zero. Repeatable: the order of every sum is fixed.
template <class T>
struct GroupedWgradOf {
  RowGroups groups;
  const T* a;         // [R, M], or with an index [T, M]
  const T* b;         // [R, N], or with an index [T, N]
  float* grad;        // [E, M, N]
  int rows, columns;  // M, N: multiples of 8
  // [R] a's, or b's, row r is the one of this number, zeros for -1; null: r. At most one of both.
  const int* a_index = nullptr;
  const int* b_index = nullptr;
};
using GroupedWgrad = GroupedWgradOf<bf16>;

// The most hidden units of an expert, gates counted, for which a weight gradient should gather tokens itself: with more
// it reads each too often, and the rows that forward and dgrad leave in expert order are faster.
inline constexpr int kMostUnitsToGather = 1024;

// The alignment that suits T*K assignments to E experts.
int grouped_alignment(std::int64_t assignments, int experts);
int grouped_dot_parts(int columns);

void grouped_forward(const GroupedForward&, Stream);
void grouped_dgrad(const GroupedDgrad&, Stream);
void grouped_wgrad(const GroupedWgrad&, Stream);

}  // namespace switchyard::kernels
