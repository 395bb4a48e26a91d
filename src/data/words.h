// Where text is cut before the model sees it. The cuts lie where no piece of a model trained here can reach across, so
// they change no token; they make words short and few, which is what makes counting and caching them fast.
#pragma once

#include <cstddef>
#include <string_view>

namespace switchyard {

inline constexpr std::size_t kLongestWord = 512;  // bytes
inline constexpr std::size_t kLongestLine = 4096;

// A piece is: spaces and one run of a script, where ASCII letters are one script and digits, punctuation and newlines
// another (sentencepiece's split_by_unicode_script); a newline ends it; a tab is in none.
inline bool is_cut(unsigned char before, unsigned char after) {
  const auto is_letter = [](unsigned char c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; };
  const auto is_sign = [&](unsigned char c) { return c < 0x80 && c != ' ' && !is_letter(c); };
  if (after == ' ') return before != ' ';
  if (before == '\n') return after != '\n';
  if (before == '\t' || after == '\t') return true;
  return (is_letter(before) && is_sign(after)) || (is_sign(before) && is_letter(after));
}

// Not inside a character, if a byte or three before `at` begins one.
inline std::size_t before_character(std::string_view text, std::size_t at) {
  for (int back = 0; back < 3 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80; ++back) --at;
  return at;
}

// The end of the word, or line with its newlines, that begins at `begin` < size.
inline std::size_t word_end(std::string_view text, std::size_t begin) {
  for (std::size_t at = begin + 1; at < text.size(); ++at) {
    if (is_cut(static_cast<unsigned char>(text[at - 1]), static_cast<unsigned char>(text[at]))) return at;
    if (at - begin == kLongestWord) return before_character(text, at);
  }
  return text.size();
}

inline std::size_t line_end(std::string_view text, std::size_t begin) {
  for (std::size_t at = begin + 1; at < text.size(); ++at) {
    if (text[at - 1] == '\n' && text[at] != '\n') return at;
    if (at - begin == kLongestLine) return before_character(text, at);
  }
  return text.size();
}

}  // namespace switchyard
