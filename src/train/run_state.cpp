#include "train/run_state.h"

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace switchyard {
namespace {

// One list of fields for both directions.
template <class State, class Visit>
void visit_fields(State& s, Visit visit) {
  visit("step", s.step);
  visit("applied_steps", s.applied_steps);
  visit("skipped_steps", s.skipped_steps);
  visit("skipped_in_a_row", s.skipped_in_a_row);
  visit("tokens", s.tokens);
  visit("loader.next_micro_batch", s.loader.next_micro_batch);
  visit("loader.micro_batch", s.loader.micro_batch);
  visit("loader.seq_len", s.loader.seq_len);
  visit("loader.tokens", s.loader.tokens);
  visit("loader.seed", s.loader.seed);
  visit("seed", s.seed);
  visit("smoothed.sum", s.smoothed.sum);
  visit("smoothed.weight", s.smoothed.weight);
  visit("best_held_out_loss", s.best_held_out_loss);
  visit("first_bits_per_byte", s.first_bits_per_byte);
  visit("world_size", s.world_size);
  visit("elapsed_s", s.elapsed_s);
  visit("resets", s.resets);
  visit("misses_evaluation", s.misses_evaluation);
  visit("collapse.idle_steps", s.collapse.idle_steps_E);
  visit("collapse.collapsed", s.collapse.collapsed);
}

// Fields that checkpoints of earlier versions lack: they keep their default.
bool is_later(const std::string& name) {
  return name == "resets" || name == "misses_evaluation" || name.rfind("collapse.", 0) == 0;
}

}  // namespace

std::string RunState::to_json() const {
  nlohmann::ordered_json json;
  visit_fields(*this, [&](const char* name, const auto& value) { json[name] = value; });
  return json.dump(2);
}

RunState RunState::from_json(const std::string& text) {
  RunState state;
  try {
    const auto json = nlohmann::json::parse(text);
    visit_fields(state, [&](const char* name, auto& value) {
      if (json.contains(name) || !is_later(name)) json.at(name).get_to(value);
    });
  } catch (const nlohmann::json::exception& error) {
    throw RunError(std::string("state.json of the checkpoint cannot be read: ") + error.what());
  }
  return state;
}

}  // namespace switchyard
