// Small text helpers. format() is printf with a std::string result, checked by the compiler.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

std::string with_commas(std::int64_t value);  // 456206616 -> "456,206,616"
std::string in_millions(std::int64_t value);  // 456206616 -> "456M"
std::string human_bytes(double bytes);        // 1.5e9 -> "1.40 GiB"
std::string human_duration(double seconds);   // 3725 -> "1h 02m"
std::string join(const std::vector<std::string>& parts, std::string_view separator);
bool matches_glob(std::string_view pattern, std::string_view text);  // * and ?, the whole text
// The candidate with the smallest edit distance to `word`, or "" when none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace switchyard
