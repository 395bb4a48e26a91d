// Which assignments keep their place (moe_spec E6, E7) and where rerouting puts the others (E8), against host loops.
#include "ops/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "ops/router_scores.h"

namespace switchyard::ops {
namespace {

using Table = std::vector<std::vector<int>>;  // [T][K]
enum class Policy { kPosition, kWeight, kImportance };
const std::vector<Policy> kPolicies = {Policy::kPosition, Policy::kWeight, Policy::kImportance};

std::vector<at::Device> devices() {
  std::vector<at::Device> list{at::kCPU};
  if (at::hasCUDA()) list.push_back(at::Device(at::kCUDA, 0));
  return list;
}

struct Case {
  const char* name;
  int tokens, experts, top_k, zero_experts;
  int capacity;
  bool equal_scores;  // every weight and every score ties
  int favourite;      // an expert that all tokens choose first, or -1
  bool unassigned;    // some tokens are padding
};
const std::vector<Case> kCases = {
    {"one token", 1, 8, 2, 0, 1, false, -1, false},
    {"capacity 1", 64, 8, 2, 0, 1, false, -1, false},
    {"half the rows fit", 1000, 8, 2, 0, 125, false, -1, false},
    {"all rows on one expert", 64, 8, 1, 0, 10, false, 3, false},
    {"one expert", 33, 1, 1, 0, 7, false, -1, false},
    {"every expert chosen", 64, 4, 4, 0, 20, false, -1, false},
    {"everything fits", 64, 8, 2, 0, 128, false, -1, false},
    {"nothing fits", 64, 8, 2, 0, 0, false, -1, false},
    {"ties everywhere", 96, 8, 2, 0, 9, true, -1, false},
    {"a favourite and ties", 96, 16, 4, 0, 9, true, 2, false},
    {"zero experts", 200, 6, 3, 4, 20, false, -1, false},
    {"padding tokens", 100, 8, 2, 2, 11, false, 1, true},
    {"many experts", 1000, 64, 8, 0, 100, false, 5, false},
};

struct Input {
  Tensor scores, expert, weight, importance, capacity, first_T;
};

// Selection scores of the real experts that make `expert` their K best, as a router would.
Input make(const Case& c, at::Device device) {
  at::manual_seed(11);
  const int columns = c.experts + c.zero_experts;
  Tensor logits =
      c.equal_scores ? at::zeros({c.tokens, columns}) : at::randn({c.tokens, columns}).mul(8).round().div(8);
  if (c.favourite >= 0) logits.select(1, c.favourite).add_(10);
  const RouterScores s = router_scores(logits, {}, {c.top_k, c.tokens, 0, 0, Score::kSoftmax, true, true, 1.0});
  Input in;
  in.scores = logits.narrow(1, 0, c.experts).contiguous();
  in.expert = s.expert_TK.clone();
  in.weight = s.weight_TK;
  in.importance = at::randn({c.tokens}).mul(4).round();
  if (c.unassigned) in.expert.slice(0, 0, c.tokens, 3).fill_(-1);
  in.capacity = at::full({1}, c.capacity, at::kInt);
  in.first_T = at::remainder(at::arange(c.tokens, at::kInt) * c.top_k, c.experts).to(at::kInt);
  for (Tensor* t : {&in.scores, &in.expert, &in.weight, &in.importance, &in.capacity, &in.first_T}) *t = t->to(device);
  return in;
}

Tensor priority_of(const Input& in, Policy policy) {
  if (policy == Policy::kPosition) return {};
  return policy == Policy::kWeight ? in.weight : in.importance;
}

Table table(const Tensor& t) {
  const Tensor host = t.cpu().to(at::kInt).contiguous();
  Table out(host.size(0));
  for (std::int64_t i = 0; i < host.size(0); ++i)
    out[i].assign(host.data_ptr<int>() + i * host.size(1), host.data_ptr<int>() + (i + 1) * host.size(1));
  return out;
}

struct Host {
  Table kept, dropped;
  std::vector<int> room;
};

// Assignments (t, k) in the order they are served.
std::vector<std::pair<int, int>> served(const Input& in, Policy policy) {
  const int tokens = static_cast<int>(in.expert.size(0)), top_k = static_cast<int>(in.expert.size(1));
  std::vector<std::pair<int, int>> list;
  for (int k = 0; k < top_k; ++k)
    for (int t = 0; t < tokens; ++t) list.push_back({t, k});
  if (policy == Policy::kPosition) return list;
  const Tensor priority = priority_of(in, policy).cpu().to(at::kDouble).contiguous();
  const auto value = [&](const std::pair<int, int>& a) {
    const double v = priority.data_ptr<double>()[policy == Policy::kWeight ? a.first * top_k + a.second : a.first];
    return std::isnan(v) ? -INFINITY : v;
  };
  std::stable_sort(list.begin(), list.end(), [&](auto a, auto b) { return value(a) > value(b); });
  return list;
}

Host host_place(const Input& in, const Case& c, Policy policy) {
  Host out{table(in.expert), Table(c.tokens, std::vector<int>(c.top_k)), std::vector<int>(c.experts, c.capacity)};
  for (const auto& [t, k] : served(in, policy)) {
    int& e = out.kept[t][k];
    if (e < 0 || e >= c.experts || out.room[e]-- > 0) continue;
    out.room[e] = 0, e = -1, out.dropped[t][k] = 1;
  }
  return out;
}

void host_reroute(Host& now, const Input& in, const Case& c, Policy policy, int rounds) {
  const Tensor scores = in.scores.cpu();
  const auto score = scores.accessor<float, 2>();
  for (int round = 0; round < rounds; ++round) {
    Table asked(c.tokens, std::vector<int>(c.top_k, -1));
    for (int t = 0; t < c.tokens; ++t) {
      std::set<int> taken(now.kept[t].begin(), now.kept[t].end());
      for (int k = 0; k < c.top_k; ++k) {
        if (!now.dropped[t][k]) continue;
        for (int step = 0; step < c.experts; ++step) {
          const int e = (t * c.top_k + step) % c.experts;
          if (taken.count(e) || now.room[e] <= 0 || !(score[t][e] > -INFINITY)) continue;
          if (asked[t][k] < 0 || score[t][e] > score[t][asked[t][k]]) asked[t][k] = e;
        }
        taken.insert(asked[t][k]);
      }
    }
    for (const auto& [t, k] : served(in, policy)) {
      const int e = asked[t][k];
      if (e < 0 || now.room[e] <= 0) continue;
      --now.room[e], now.kept[t][k] = e, now.dropped[t][k] = 0;
    }
  }
}

std::vector<int> list(const Tensor& t) {
  const Tensor host = t.cpu();
  return {host.data_ptr<int>(), host.data_ptr<int>() + host.numel()};
}

TEST(Placement, EqualsAHostLoopForEachPolicy) {
  for (const at::Device device : devices())
    for (const Case& c : kCases)
      for (const Policy policy : kPolicies) {
        SCOPED_TRACE(std::string(c.name) + ", policy " + std::to_string(static_cast<int>(policy)));
        const Input in = make(c, device);
        const Placement got = place(in.expert, c.experts, in.capacity, priority_of(in, policy));
        const Host want = host_place(in, c, policy);
        EXPECT_EQ(table(got.expert_TK), want.kept);
        EXPECT_EQ(table(got.dropped_TK), want.dropped);
        EXPECT_EQ(list(got.room_E), want.room);
        EXPECT_EQ(got.expert_TK.scalar_type(), at::kInt);
        EXPECT_TRUE(got.expert_TK.is_contiguous());
      }
}

TEST(Placement, RaisingTheCapacityDropsNothingThatWasKept) {
  const Case c{"", 300, 8, 2, 2, 0, false, 4, false};
  const Input in = make(c, at::kCPU);
  Tensor before = at::zeros_like(in.expert, at::kBool);
  for (int capacity = 0; capacity <= 300; capacity += 6) {
    const Tensor kept = place(in.expert, 8, at::full({1}, capacity, at::kInt)).dropped_TK.logical_not();
    EXPECT_FALSE(before.logical_and(kept.logical_not()).any().item<bool>()) << capacity;
    before = kept;
  }
  EXPECT_TRUE(before.all().item<bool>());
}

TEST(Placement, FirstChoicesComeBeforeSecondOnes) {
  const Tensor expert = at::tensor(std::vector<int>{1, 0, 2, 0, 0, 1}, at::kInt).view({3, 2});
  const Placement got = place(expert, 3, at::ones({1}, at::kInt));
  EXPECT_EQ(table(got.expert_TK), (Table{{1, -1}, {2, -1}, {0, -1}}));
}

TEST(Placement, ANanPriorityComesLast) {
  const Tensor expert = at::zeros({3, 1}, at::kInt);
  const Tensor importance = at::tensor(std::vector<float>{NAN, -INFINITY, -5});
  EXPECT_EQ(table(place(expert, 1, at::full({1}, 1, at::kInt), importance).expert_TK), (Table{{-1}, {-1}, {0}}));
  EXPECT_EQ(table(place(expert, 1, at::full({1}, 2, at::kInt), importance).expert_TK), (Table{{0}, {-1}, {0}}));
}

TEST(Reroute, EqualsAHostLoopForEachPolicy) {
  for (const at::Device device : devices())
    for (const Case& c : kCases)
      for (const Policy policy : kPolicies)
        for (const int rounds : {1, 2, 5}) {
          SCOPED_TRACE(std::string(c.name) + ", policy " + std::to_string(static_cast<int>(policy)) + ", rounds " +
                       std::to_string(rounds));
          const Input in = make(c, device);
          const Tensor priority = priority_of(in, policy);
          const Placement placed = place(in.expert, c.experts, in.capacity, priority);
          const Rerouted got = reroute(placed, in.scores, priority, rounds, in.first_T);
          Host want = host_place(in, c, policy);
          host_reroute(want, in, c, policy, rounds);
          EXPECT_EQ(table(got.placement.expert_TK), want.kept);
          EXPECT_EQ(table(got.placement.dropped_TK), want.dropped);
          EXPECT_EQ(list(got.placement.room_E), want.room);
          EXPECT_TRUE(at::equal(got.moved_TK, placed.dropped_TK.logical_and(got.placement.dropped_TK.logical_not())));
        }
}

TEST(Reroute, NoExpertOverCapacityNoneTwiceInATokenAndNobodyWaitsBesideAFreePlace) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    const Input in = make(c, at::kCPU);
    const Rerouted got = reroute(place(in.expert, c.experts, in.capacity), in.scores, {}, 3 * c.experts, in.first_T);
    const Table kept = table(got.placement.expert_TK), dropped = table(got.placement.dropped_TK);
    std::vector<int> load(c.experts);
    for (int t = 0; t < c.tokens; ++t) {
      std::set<int> own;
      for (const int e : kept[t]) {
        if (e < 0) continue;
        EXPECT_TRUE(own.insert(e).second) << "token " << t << " has expert " << e << " twice";
        if (e < c.experts) ++load[e];
      }
    }
    for (int e = 0; e < c.experts; ++e) EXPECT_LE(load[e], c.capacity);
    for (int t = 0; t < c.tokens; ++t)
      for (int k = 0; k < c.top_k; ++k)
        for (int e = 0; dropped[t][k] && e < c.experts; ++e)
          EXPECT_TRUE(load[e] == c.capacity || std::count(kept[t].begin(), kept[t].end(), e)) << t << " " << e;
  }
}

TEST(Reroute, NeverGoesWhereTheScoreIsMinusInfinityOrNan) {
  const Case c{"", 64, 8, 2, 0, 20, false, 1, false};
  Input in = make(c, at::kCPU);
  in.scores.select(1, 6).fill_(-INFINITY);
  in.scores.select(1, 7).fill_(NAN);
  Tensor expert = in.expert.clone();
  expert.select(1, 0).fill_(1);
  expert.select(1, 1).fill_(2);
  const Rerouted got = reroute(place(expert, 8, in.capacity), in.scores, {}, 8, in.first_T);
  EXPECT_FALSE(got.placement.expert_TK.ge(6).any().item<bool>());
  EXPECT_EQ(got.placement.room_E.sum().item<int>(), 40) << "the six allowed experts are full";
}

}  // namespace
}  // namespace switchyard::ops
