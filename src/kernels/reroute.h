// kernels/reroute.h: where assignments without a place ask for one.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// For each dropped assignment the expert of the largest score that has room, and that none of its token's assignments
// holds or was given here for an earlier k; equal scores go to the smallest (e - first) mod E. Scores of -inf and NaN
// are never chosen.
struct Proposals {
  const float* score;  // [T, E]
  const int* held;     // [T, K] the expert that the assignment has, or -1; other values are held and never chosen
  const std::uint8_t* dropped;  // [T, K]
  const int* room;              // [E]
  const int* first;             // [T] or null: 0
  int* expert;                  // [K, T] overwritten: the expert, -1 for none
  std::int64_t tokens;
  int top_k, experts;
};

void proposals(const Proposals&, Stream);
void proposals_cpu(const Proposals&, Range tokens);

}  // namespace switchyard::kernels
