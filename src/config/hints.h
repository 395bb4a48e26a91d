// What someone who wrote an unknown key most likely meant.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace switchyard {

// Names other programs use for our keys: {"num_experts", "moe.n_experts"}; with the value or the other key that may be
// meant: {"use_null_expert", "moe.overflow null_expert"}, {"batch_size", "train.batch_tokens or train.micro_batch"}.
const std::vector<std::pair<std::string, std::string>>& key_aliases();

// "did you mean moe.n_experts?", or "" when nothing is near. holds_keys: the unknown key held an object of keys, so a
// group is likelier meant.
std::string key_hint(const std::string& unknown_key, bool holds_keys = false);

}  // namespace switchyard
