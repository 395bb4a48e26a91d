#include "train/safetensors.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "base/error.h"
#include "base/text.h"
#include "train/safetensors_header.h"

namespace switchyard {
namespace {

struct Dtype {
  at::ScalarType type;
  const char* name;
};
constexpr Dtype kDtypes[] = {{at::kDouble, "F64"},
                             {at::kFloat, "F32"},
                             {at::kHalf, "F16"},
                             {at::kBFloat16, "BF16"},
                             {at::kLong, "I64"},
                             {at::kInt, "I32"},
                             {at::kShort, "I16"},
                             {at::kChar, "I8"},
                             {at::kByte, "U8"},
                             {at::kUInt32, "U32"},
                             {at::kUInt64, "U64"},
                             {at::kUInt16, "U16"},
                             {at::kBool, "BOOL"},
                             {at::kFloat8_e4m3fn, "F8_E4M3"},
                             {at::kFloat8_e5m2, "F8_E5M2"}};

std::string dtype_name(const std::string& path, const std::string& tensor, at::ScalarType type) {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.type == type) return dtype.name;
  }
  throw RunError(path + ": tensor " + tensor + " has the type " + at::toString(type) +
                 ", which safetensors cannot hold");
}

at::ScalarType dtype_from(const std::string& name) {
  for (const Dtype& dtype : kDtypes) {
    if (name == dtype.name) return dtype.type;
  }
  SWITCHYARD_ASSERT(false, "the header was checked: " + name);
}

std::string shape_text(at::IntArrayRef shape) {
  std::vector<std::string> dims;
  for (const std::int64_t dim : shape) dims.push_back(std::to_string(dim));
  return "[" + join(dims, ", ") + "]";
}

// Widest first, as the Python writer does: every tensor then starts at a multiple of its element size.
std::vector<std::size_t> order_of_bytes(const NamedTensors& tensors) {
  std::vector<std::size_t> order(tensors.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return tensors[a].second.element_size() > tensors[b].second.element_size();
  });
  return order;
}

SafetensorsHeader header_of(const std::string& path, const NamedTensors& tensors, const std::vector<std::size_t>& order,
                            const Metadata& metadata) {
  SafetensorsHeader header;
  header.metadata = metadata;
  std::set<std::string> names;
  std::uint64_t position = 0;
  for (const std::size_t index : order) {
    const auto& [name, tensor] = tensors[index];
    if (!names.insert(name).second || name == "__metadata__") throw RunError(path + ": two tensors are named " + name);
    const std::uint64_t bytes = static_cast<std::uint64_t>(tensor.numel()) * tensor.element_size();
    header.tensors.push_back(
        {name, dtype_name(path, name, tensor.scalar_type()), tensor.sizes().vec(), position, position + bytes});
    position += bytes;
  }
  return header;
}

class OutputFile {
 public:
  OutputFile(std::string path, std::uint64_t planned) : path_(std::move(path)), planned_(planned) {
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor_ < 0) fail("create");
  }
  ~OutputFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  OutputFile(const OutputFile&) = delete;

  void write(const void* bytes, std::size_t count) {
    checksum_.add(bytes, count);
    const char* next = static_cast<const char*>(bytes);
    while (count > 0) {
      const ssize_t done = ::write(descriptor_, next, std::min<std::size_t>(count, std::size_t{1} << 30));
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) fail("write");
      next += done;
      count -= static_cast<std::size_t>(done);
      written_ += static_cast<std::uint64_t>(done);
    }
  }

  FileSummary finish() {
    if (::fsync(descriptor_) != 0) fail("sync");
    const int descriptor = descriptor_;
    descriptor_ = -1;
    if (::close(descriptor) != 0) fail("close");
    return {written_, checksum_.hex()};
  }

 private:
  [[noreturn]] void fail(const char* doing) const {
    throw RunError(format("cannot %s %s: %s (%s of %s written)", doing, path_.c_str(), std::strerror(errno),
                          human_bytes(static_cast<double>(written_)).c_str(),
                          human_bytes(static_cast<double>(planned_)).c_str()));
  }

  std::string path_;
  std::uint64_t planned_, written_ = 0;
  Checksum checksum_;
  int descriptor_ = -1;
};

}  // namespace

FileSummary write_safetensors(const std::string& path, const NamedTensors& tensors, const Metadata& metadata) {
  const std::vector<std::size_t> order = order_of_bytes(tensors);
  const SafetensorsHeader header = header_of(path, tensors, order, metadata);
  const std::string encoded = encode_header(header);
  OutputFile file(path, encoded.size() + (header.tensors.empty() ? 0 : header.tensors.back().end));
  file.write(encoded.data(), encoded.size());
  for (const std::size_t index : order) {
    const at::Tensor host = tensors[index].second.detach().to(at::kCPU).contiguous();
    file.write(host.data_ptr(), host.nbytes());
  }
  return file.finish();
}

struct SafetensorsFile::Contents {
  explicit Contents(const std::string& file) : path(file), mapping(file) {
    header = decode_header(path, mapping.data(), mapping.size(), data_start);
    for (const TensorEntry& entry : header.tensors) by_name[entry.name] = &entry;
  }

  const TensorEntry& entry(const std::string& name) const {
    const auto found = by_name.find(name);
    if (found != by_name.end()) return *found->second;
    std::vector<std::string> names;
    for (const TensorEntry& candidate : header.tensors) names.push_back(candidate.name);
    const std::string near = nearest(name, names);
    throw RunError(path + " has no tensor " + name + (near.empty() ? "" : "; the nearest is " + near));
  }

  void copy_bytes(const TensorEntry& entry, void* target) const {
    if (entry.end > entry.begin)
      std::memcpy(target, mapping.data() + data_start + entry.begin, entry.end - entry.begin);
  }

  std::string path;
  MappedFile mapping;
  std::size_t data_start = 0;
  SafetensorsHeader header;
  std::map<std::string, const TensorEntry*> by_name;
};

SafetensorsFile::SafetensorsFile(const std::string& path) : contents_(std::make_unique<Contents>(path)) {}
SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const TensorEntry& entry : contents_->header.tensors) names.push_back(entry.name);
  return names;
}

bool SafetensorsFile::has(const std::string& name) const { return contents_->by_name.count(name) > 0; }
const Metadata& SafetensorsFile::metadata() const { return contents_->header.metadata; }

at::Tensor SafetensorsFile::tensor(const std::string& name) const {
  const TensorEntry& entry = contents_->entry(name);
  at::Tensor result = at::empty(entry.shape, dtype_from(entry.dtype));
  contents_->copy_bytes(entry, result.data_ptr());
  return result;
}

void SafetensorsFile::copy_into(const std::string& name, at::Tensor& target) const {
  const TensorEntry& entry = contents_->entry(name);
  if (target.sizes() != at::IntArrayRef(entry.shape) || target.scalar_type() != dtype_from(entry.dtype)) {
    throw RunError(contents_->path + ": tensor " + name + " is " + entry.dtype + " " + shape_text(entry.shape) + ", " +
                   dtype_name(contents_->path, name, target.scalar_type()) + " " + shape_text(target.sizes()) +
                   " is needed");
  }
  if (target.is_cpu() && target.is_contiguous()) {
    contents_->copy_bytes(entry, target.data_ptr());
  } else {
    const at::NoGradGuard no_grad;
    target.copy_(tensor(name));
  }
}

NamedTensors SafetensorsFile::all() const {
  NamedTensors tensors;
  for (const std::string& name : names()) tensors.emplace_back(name, tensor(name));
  return tensors;
}

}  // namespace switchyard
