// kernels/grouped_gemm.h: products of rows in expert order with their expert's matrix, on Hopper (sm_90a), in bf16 with
// fp32 sums. One expert with null tables is a plain product of `row_capacity` rows.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// Who owns which rows, as kernels/dispatch.h lays them out. All on the device; the host reads nothing.
struct RowGroups {
  const int* offset;         // [E+1] first row of each expert; null: one expert, all rows
  const int* count;          // [E] rows that are no padding; null: all
  const int* tile_expert;    // [row_capacity / alignment] the expert of each tile of rows; null: 0
  const int* longest_first;  // [E] experts by falling count; null: in order
  int* scheduler;            // two ints, zero; every product leaves them zero
  int experts;
  int alignment;  // 128, or 256: two blocks share the matrix tiles they read, faster where experts have many rows
  std::int64_t row_capacity;  // a multiple of alignment
};

// out[r] = rows[r] W_e^T, or relu(.)^2 of it. Rows of padding become zeros (rows must hold zeros there, or index -1).
// All widths are multiples of 8.
struct GroupedForward {
  RowGroups groups;
  const bf16* rows;      // [R, K], or with an index [T, K]
  const int* row_index;  // [R] out's row r reads rows[row_index[r]], zeros for -1; null: row r
  const bf16* weight;    // [E, N, K]
  bf16* out;             // [R, N]
  int inner, columns;    // K, N
  bool relu2;
};

// out[r] = rows[r] W_e, the gradient by the input of a product with W. With `active` it goes on through relu^2 and the
// router's weight: with d = rows[r] W_e,
//   out[r] = row_weight[r] * 2 sqrt(active[r]) * d;    dot[0..P)[r] sum to <d, active[r]>,  P = grouped_dot_parts(N)
// sqrt(active) is relu of the pre-activation, so that the pre-activation itself need not be kept.
struct GroupedDgrad {
  RowGroups groups;
  const bf16* rows;         // [R, K], or with an index [T, K]
  const int* row_index;     // [R] or null
  const bf16* weight;       // [E, K, N]
  bf16* out;                // [R, N]
  const bf16* active;       // [R, N] or null
  const float* row_weight;  // [R], null: 1; read only with active
  float* dot;               // [P, R], null: not wanted; only with active
  int inner, columns;       // K, N
};

// grad[e] += a_e^T b_e, each element by one addition; an expert without rows leaves its part bitwise as it was. Padding
// of a and b is zero. Repeatable: the order of every sum is fixed.
struct GroupedWgrad {
  RowGroups groups;
  const bf16* a;      // [R, M]
  const bf16* b;      // [R, N]
  float* grad;        // [E, M, N]
  int rows, columns;  // M, N: multiples of 8
};

bool grouped_gemm_supported(int capability_major, int capability_minor);
// The alignment that suits T*K assignments to E experts.
int grouped_alignment(std::int64_t assignments, int experts);
int grouped_dot_parts(int columns);

void grouped_forward(const GroupedForward&, Stream);
void grouped_dgrad(const GroupedDgrad&, Stream);
void grouped_wgrad(const GroupedWgrad&, Stream);

}  // namespace switchyard::kernels
