#include <limits>

#include "kernels/reroute.h"

namespace switchyard::kernels {
namespace {

// Whether the token has expert e, or asked for it with a choice before k.
bool has(const Proposals& p, std::int64_t t, int k, int e) {
  for (int i = 0; i < p.top_k; ++i) {
    if (p.held[t * p.top_k + i] == e || (i < k && p.expert[i * p.tokens + t] == e)) return true;
  }
  return false;
}

int best(const Proposals& p, std::int64_t t, int k) {
  const float* score = p.score + t * p.experts;
  const int first = p.first ? p.first[t] : 0;
  int found = -1;
  float highest = -std::numeric_limits<float>::infinity();
  for (int step = 0; step < p.experts; ++step) {
    const int e = (first + step) % p.experts;
    if (score[e] > highest && p.room[e] > 0 && !has(p, t, k, e)) found = e, highest = score[e];
  }
  return found;
}

}  // namespace

void proposals_cpu(const Proposals& p, Range tokens) {
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    for (int k = 0; k < p.top_k; ++k) p.expert[k * p.tokens + t] = p.dropped[t * p.top_k + k] ? best(p, t, k) : -1;
  }
}

}  // namespace switchyard::kernels
