// Messages of the control channel: a length, a type, and fields. Both ends are the same program on the same kind of
// processor, so integers travel as they lie in memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include "base/error.h"

namespace switchyard {

enum class FrameType : std::uint8_t {
  kHello,      // token, rank, host             a rank introduces itself to rank 0
  kWelcome,    // token, host                   rank 0 is the right one
  kStart,      // (none)                        everybody is there
  kHeartbeat,  // (none)
  kGather,     // sequence, what, bytes         one rank's share of an all-gather
  kResult,     // sequence, bytes of each rank
  kFailure,    // reason                        the sender is about to exit
  kDeath,      // message                       the run is over, and why
  kFinish,     // (none)                        the sender has nothing more to say
};

struct Frame {
  FrameType type = FrameType::kHeartbeat;
  std::string payload;
};

class FrameWriter {
 public:
  FrameWriter& add(std::uint64_t value) {
    payload_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  FrameWriter& add(const std::string& text) {
    add(text.size());
    payload_ += text;
    return *this;
  }
  Frame frame(FrameType type) { return {type, std::move(payload_)}; }

 private:
  std::string payload_;
};

// Reads fields in the order they were added. RunError when the payload ends early.
class FrameReader {
 public:
  explicit FrameReader(const Frame& frame) : payload_(frame.payload) {}
  std::uint64_t integer() {
    std::uint64_t value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    const std::uint64_t size = integer();
    return std::string(take(size), size);
  }

 private:
  const char* take(std::uint64_t bytes) {
    if (bytes > payload_.size() - position_) throw RunError("a control message ends early");
    position_ += bytes;
    return payload_.data() + position_ - bytes;
  }
  const std::string& payload_;
  std::size_t position_ = 0;
};

inline void append_frame(std::string& out, const Frame& frame) {
  const std::uint64_t size = frame.payload.size();
  out.append(reinterpret_cast<const char*>(&size), sizeof size);
  out.push_back(static_cast<char>(frame.type));
  out += frame.payload;
}

// Takes the first whole frame from the front of `in`, if one is there. RunError when it claims more than `limit` bytes.
inline std::optional<Frame> take_frame(std::string& in, std::uint64_t limit) {
  constexpr std::size_t kHeader = sizeof(std::uint64_t) + 1;
  if (in.size() < kHeader) return std::nullopt;
  std::uint64_t size;
  std::memcpy(&size, in.data(), sizeof size);
  if (size > limit) throw RunError("a control message is too long");
  if (in.size() < kHeader + size) return std::nullopt;
  Frame frame{static_cast<FrameType>(in[kHeader - 1]), in.substr(kHeader, size)};
  in.erase(0, kHeader + size);
  return frame;
}

}  // namespace switchyard
