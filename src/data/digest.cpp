#include "data/digest.h"

#include "base/text.h"

namespace switchyard {

void Digest::add(std::string_view bytes) {
  constexpr unsigned __int128 kPrime = (static_cast<unsigned __int128>(1) << 88) + 0x13b;
  unsigned __int128 state = state_;
  for (const char c : bytes) state = (state ^ static_cast<unsigned char>(c)) * kPrime;
  state_ = state;
}

void Digest::add(std::uint64_t number) {
  char bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(number >> (8 * i));
  add(std::string_view(bytes, sizeof(bytes)));
}

std::string Digest::hex() const {
  return format("%016llx%016llx", static_cast<unsigned long long>(state_ >> 64),
                static_cast<unsigned long long>(state_));
}

}  // namespace switchyard
