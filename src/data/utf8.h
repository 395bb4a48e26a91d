// What of a text may be shown to sentencepiece: well-formed UTF-8 without NUL and without its own space marker.
#pragma once

#include <cstddef>
#include <string_view>

namespace switchyard {

inline constexpr std::string_view kSpaceMarker = "\xe2\x96\x81";  // U+2581, what sentencepiece writes for a space

// Length of the well-formed character at `at` (Unicode 15, table 3-7), or 0.
inline std::size_t utf8_length(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0u; };
  const auto within = [](unsigned value, unsigned low, unsigned high) { return value >= low && value <= high; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (within(lead, 0xC2, 0xDF)) return within(byte(1), 0x80, 0xBF) ? 2 : 0;
  if (within(lead, 0xE0, 0xEF)) {
    const unsigned low = lead == 0xE0 ? 0xA0 : 0x80, high = lead == 0xED ? 0x9F : 0xBF;  // no overlong, no surrogate
    return within(byte(1), low, high) && within(byte(2), 0x80, 0xBF) ? 3 : 0;
  }
  if (within(lead, 0xF0, 0xF4)) {
    const unsigned low = lead == 0xF0 ? 0x90 : 0x80, high = lead == 0xF4 ? 0x8F : 0xBF;  // up to U+10FFFF
    return within(byte(1), low, high) && within(byte(2), 0x80, 0xBF) && within(byte(3), 0x80, 0xBF) ? 4 : 0;
  }
  return 0;
}

// As utf8_length, and 0 for what the model must not see.
inline std::size_t plain_length(std::string_view text, std::size_t at) {
  const std::size_t length = utf8_length(text, at);
  if (length == 1 && text[at] == '\0') return 0;
  if (length == 3 && text.compare(at, 3, kSpaceMarker) == 0) return 0;
  return length;
}

inline bool is_plain(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = plain_length(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

}  // namespace switchyard
