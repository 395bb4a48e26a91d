// A 128-bit fingerprint of files (FNV-1a, 128 bits): tells whether two machines hold the same corpus. It guards against
// accidents, not against an adversary.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace switchyard {

class Digest {
 public:
  void add(std::string_view bytes);
  void add(std::uint64_t number);  // as eight bytes, lowest first
  std::string hex() const;         // 32 lower-case digits

 private:
  unsigned __int128 state_ = (static_cast<unsigned __int128>(0x6c62272e07bb0142ull) << 64) | 0x62b821756295c58dull;
};

}  // namespace switchyard
