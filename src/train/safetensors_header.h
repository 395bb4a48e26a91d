// The JSON header of a safetensors file, read and written. No torch.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace switchyard {

struct TensorEntry {
  std::string name, dtype;  // dtype as the format spells it: F32, BF16, F8_E4M3, …
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  // bytes from the end of the header
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
};

std::size_t dtype_bytes(const std::string& dtype);  // 0: not a dtype of the format that is known here

// With the eight bytes of length in front, padded with spaces to a multiple of 8 so that what follows is aligned.
std::string encode_header(const SafetensorsHeader& header);

// `file` names the file in errors. RunError: truncated, not JSON, an unknown dtype, byte ranges that have gaps,
// overlap, do not fit the shape or leave the file. header_bytes: where the tensors' bytes start.
SafetensorsHeader decode_header(const std::string& file, const char* bytes, std::size_t size,
                                std::size_t& header_bytes);

}  // namespace switchyard
