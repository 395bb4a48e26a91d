// proposals: where assignments without a place ask for one, against the CPU form, value for value.
#include "harness.h"
#include "kernels/reroute.h"

namespace switchyard::gpu_check {
namespace {

enum class Scores { kNormal, kTies, kNever };  // kNever: mostly -inf and NaN
struct ProposalCase {
  const char* name;
  int tokens, experts, top_k;
  int dropped, full;  // percent: of assignments, of experts
  Scores scores;
  bool rotate;
};
const std::vector<ProposalCase> kProposalCases = {
    {"no tokens", 0, 8, 2, 100, 0, Scores::kNormal, true},
    {"one token", 1, 8, 2, 100, 0, Scores::kNormal, true},
    {"one expert", 65, 1, 1, 50, 0, Scores::kNormal, false},
    {"nothing dropped", 257, 8, 2, 0, 50, Scores::kNormal, true},
    {"odd", 333, 13, 3, 30, 40, Scores::kNormal, true},
    {"no expert has room", 100, 8, 2, 50, 100, Scores::kNormal, true},
    {"every choice dropped", 127, 64, 8, 100, 50, Scores::kNormal, true},
    {"more choices than experts with room", 99, 8, 8, 80, 50, Scores::kTies, true},
    {"ties, rotated", 511, 40, 4, 60, 30, Scores::kTies, true},
    {"ties, lowest index", 511, 40, 4, 60, 30, Scores::kTies, false},
    {"-inf and NaN", 300, 33, 4, 70, 20, Scores::kNever, true},
    {"512 experts, 16 chosen", 130, 512, 16, 50, 50, Scores::kTies, true},
    {"8x2", 65536, 8, 2, 15, 30, Scores::kNormal, true},
    {"64x8", 32768, 64, 8, 15, 30, Scores::kTies, true},
};

float draw_score(Random& random, Scores kind) {
  if (kind == Scores::kTies) return static_cast<float>(random.below(4));
  if (kind == Scores::kNever && random.below(4) != 0) return random.below(2) ? -INFINITY : NAN;
  return static_cast<float>(random.normal(1)[0]);
}

void check_proposals(Report& report, const ProposalCase& c) {
  Random random(61);
  const auto percent = [&](int of) { return random.below(100) < of; };
  std::vector<float> score(static_cast<std::size_t>(c.tokens) * c.experts);
  for (float& s : score) s = draw_score(random, c.scores);
  std::vector<int> held(static_cast<std::size_t>(c.tokens) * c.top_k), room(c.experts), first(c.tokens);
  std::vector<std::uint8_t> dropped(held.size());
  for (std::size_t i = 0; i < held.size(); ++i) {
    dropped[i] = percent(c.dropped);
    // What is not dropped holds an expert, or one that takes everything and comes after them.
    held[i] = dropped[i] ? -1 : random.below(c.experts + 1);
  }
  for (int& rows : room) rows = percent(c.full) ? 0 : 1 + random.below(9);
  for (int& e : first) e = random.below(c.experts);

  const Buffer<float> device_score(score);
  const Buffer<int> device_held(held), device_room(room), device_first(first);
  const Buffer<std::uint8_t> device_dropped(dropped);
  Buffer<int> expert(held.size());
  kernels::Proposals work{device_score.get(),
                          device_held.get(),
                          device_dropped.get(),
                          device_room.get(),
                          c.rotate ? device_first.get() : nullptr,
                          expert.get(),
                          c.tokens,
                          c.top_k,
                          c.experts};
  run_captured([&](Stream s) { kernels::proposals(work, s); });
  std::vector<int> want(held.size());
  work.score = score.data(), work.held = held.data(), work.dropped = dropped.data(), work.room = room.data();
  work.first = c.rotate ? first.data() : nullptr, work.expert = want.data();
  kernels::proposals_cpu(work, {0, c.tokens});
  report.compare("proposals", c.name, values_of(expert), Values(want.begin(), want.end()), kExact);
  report.expect("proposals", std::string(c.name) + ": writes stay inside", expert.guard_intact());
}

}  // namespace

void check_reroute(Report& report) {
  for (const ProposalCase& c : kProposalCases) check_proposals(report, c);
}

}  // namespace switchyard::gpu_check
