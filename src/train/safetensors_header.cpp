#include "train/safetensors_header.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/text.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kLargestHeader = 100'000'000;  // the format's own limit

[[noreturn]] void fail(const std::string& file, const std::string& what) { throw RunError(file + ": " + what); }

std::string count(std::uint64_t bytes) { return with_commas(static_cast<std::int64_t>(bytes)); }

// Multiplies without passing `limit`; false when the product would.
bool multiply(std::uint64_t& product, std::uint64_t factor, std::uint64_t limit) {
  if (factor != 0 && product > limit / factor) return false;
  product *= factor;
  return true;
}

TensorEntry entry_from(const std::string& file, const std::string& name, const Json& json, std::uint64_t data_bytes) {
  TensorEntry entry;
  entry.name = name;
  try {
    entry.dtype = json.at("dtype").get<std::string>();
    entry.shape = json.at("shape").get<std::vector<std::int64_t>>();
    entry.begin = json.at("data_offsets").at(0).get<std::uint64_t>();
    entry.end = json.at("data_offsets").at(1).get<std::uint64_t>();
  } catch (const Json::exception& error) {
    fail(file, "the header's entry of tensor " + name + " is broken: " + error.what());
  }
  std::uint64_t bytes = dtype_bytes(entry.dtype);
  if (bytes == 0) fail(file, "tensor " + name + " has the unknown dtype " + entry.dtype);
  bool fits = true;
  for (const std::int64_t dim : entry.shape)
    fits = fits && dim >= 0 && multiply(bytes, static_cast<std::uint64_t>(dim), data_bytes);
  if (entry.end > data_bytes || entry.begin > entry.end) {
    fail(file, "truncated: tensor " + name + " ends at byte " + count(entry.end) + " of the data, the file holds " +
                   count(data_bytes));
  }
  if (!fits || entry.end - entry.begin != bytes) {
    fail(file,
         "tensor " + name + " has " + count(entry.end - entry.begin) + " bytes, which its shape and dtype do not make");
  }
  return entry;
}

void check_no_gaps(const std::string& file, const SafetensorsHeader& header, std::uint64_t data_bytes) {
  std::uint64_t expected = 0;
  for (const TensorEntry& entry : header.tensors) {
    if (entry.begin != expected) fail(file, "the bytes of tensor " + entry.name + " overlap another's or leave a gap");
    expected = entry.end;
  }
  if (expected != data_bytes) {
    fail(file, "holds " + count(data_bytes) + " bytes of tensors, the header describes " + count(expected));
  }
}

}  // namespace

std::size_t dtype_bytes(const std::string& dtype) {
  static const std::map<std::string, std::size_t> sizes = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4},     {"I16", 2},    {"I8", 1},
      {"U8", 1},  {"U32", 4}, {"U64", 8}, {"BOOL", 1}, {"U16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

std::string encode_header(const SafetensorsHeader& header) {
  Json json = Json::object();
  if (!header.metadata.empty()) json["__metadata__"] = header.metadata;
  for (const TensorEntry& entry : header.tensors) {
    json[entry.name] = {{"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  std::string bytes(kLengthBytes, '\0');
  for (std::size_t i = 0; i < kLengthBytes; ++i) bytes[i] = static_cast<char>(length >> (8 * i) & 0xff);
  return bytes + text;
}

SafetensorsHeader decode_header(const std::string& file, const char* bytes, std::size_t size,
                                std::size_t& header_bytes) {
  if (size < kLengthBytes) fail(file, "truncated: " + count(size) + " bytes hold no safetensors header");
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    length |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  if (length > kLargestHeader) fail(file, "not a safetensors file: its first eight bytes are no header length");
  if (length > size - kLengthBytes) {
    fail(file, "truncated: the header has " + count(length) + " bytes, the file " + count(size));
  }
  header_bytes = kLengthBytes + length;
  const Json json = Json::parse(bytes + kLengthBytes, bytes + header_bytes, nullptr, false);
  if (!json.is_object()) fail(file, "the safetensors header is not JSON");

  SafetensorsHeader header;
  const std::uint64_t data_bytes = size - header_bytes;
  for (const auto& [name, value] : json.items()) {
    if (name != "__metadata__") {
      header.tensors.push_back(entry_from(file, name, value, data_bytes));
    } else if (value.is_object()) {
      for (const auto& [key, text] : value.items())
        header.metadata[key] = text.is_string() ? text.get<std::string>() : text.dump();
    }
  }
  std::stable_sort(header.tensors.begin(), header.tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_no_gaps(file, header, data_bytes);
  return header;
}

}  // namespace switchyard
