// kernels/dispatch.h: the counting sort that lines assignments up by expert, and the moves of rows it plans.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// Sorts the T*K assignments by expert, stable in (t, k). Expert e's rows start at offset[e], a multiple of `alignment`;
// the rows between its last assignment and the next offset are padding (token_of_row -1).
// row_capacity = roundup(T*K + E*(alignment-1), alignment) bounds offset[E]; rows from offset[E] on get token -1.
struct Dispatch {
  const int* expert;  // [T, K]  -1: the assignment was dropped and gets no row
  int* count;         // [E]     real rows an expert
  int* offset;        // [E+1]   first (padded) row of each expert; offset[E] = rows in use
  int* end;           // [E]     offset[e+1]: one past expert e's padded rows, the form grouped products want
  int* token_of_row;  // [row_capacity]
  int* row_of;        // [T, K]  -1 for a dropped assignment
  int* scratch;       // dispatch_scratch(...) ints, CUDA only
  std::int64_t tokens;
  int top_k, experts, alignment;
  std::int64_t row_capacity;
  // What grouped products schedule by (kernels/grouped_gemm.h); null: not wanted.
  int* tile_expert = nullptr;    // [row_capacity / alignment] the expert of each tile in use
  int* longest_first = nullptr;  // [E] by falling count, equal ones by index
  int* scheduler = nullptr;      // [2] zeros
};

void dispatch(const Dispatch&, Stream);
void dispatch_cpu(const Dispatch&);
std::int64_t dispatch_scratch(std::int64_t tokens, int top_k, int experts);

// out[row_of[t,k]] = rows[t]: a token is read once and written to each of its rows. Padding (rows before
// *row_count whose token is -1) becomes zeros; rows from *row_count on are left as they are.
template <class T>
struct PermuteRows {
  const T* rows;            // [T, D]
  const int* row_of;        // [T, K]
  const int* token_of_row;  // [R]
  const int* row_count;     // one device value
  T* out;                   // [R, D]
  std::int64_t tokens;
  int top_k, width;  // width: a multiple of 8 on CUDA
  std::int64_t row_capacity;
  // A CUDA warp or a CPU range takes token i and row i: this many in all.
  std::int64_t items() const { return tokens > row_capacity ? tokens : row_capacity; }
};

// out[t] = sum_k rows[row_of[t,k]]      accumulated in fp32, in order of k
// A row index of -1 adds nothing.
template <class T>
struct Combine {
  const T* rows;      // [R, D]
  const int* row_of;  // [T, K]
  T* out;             // [T, D] overwritten
  std::int64_t tokens;
  int top_k, width;  // width: a multiple of 8 on CUDA
};

// Moves one value an assignment between the token order and the row order: out[row_of[i]] = values[i] and back
// (padding rows 0; a dropped assignment gets 0). From rows a value may come as the sum of `parts`, in their order.
struct AssignmentValues {
  const float* values;      // [T*K] to rows, [parts, R] from rows
  const int* row_of;        // [T*K]
  const int* token_of_row;  // [R] (to rows: padding is found by -1)
  float* out;               // [R] to rows, [T*K] from rows
  std::int64_t assignments, row_capacity;
  int parts = 1;
};

template <class T>
void permute_rows(const PermuteRows<T>&, Stream);  // bf16, float
template <class T>
void combine(const Combine<T>&, Stream);  // bf16, float
void values_to_rows(const AssignmentValues&, Stream);
void values_from_rows(const AssignmentValues&, Stream);

template <class T>
void permute_rows_cpu(const PermuteRows<T>&, Range items);  // float, double
template <class T>
void combine_cpu(const Combine<T>&, Range tokens);  // float, double
void values_to_rows_cpu(const AssignmentValues&);
void values_from_rows_cpu(const AssignmentValues&);

}  // namespace switchyard::kernels
