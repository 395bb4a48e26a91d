// The safetensors format: eight bytes of header length, a JSON header, the tensors' bytes without gaps. Files written
// here load with the Python package, and the other way round. https://github.com/huggingface/safetensors
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/files.h"
#include "train/checksum.h"

namespace switchyard {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;
using Metadata = std::map<std::string, std::string>;

// Writes the tensors (any device, any strides) one after another, at most one of them copied to the host at a time, and
// fsyncs. Not atomic: the caller renames. RunError with path, sizes and reason; a repeated name is one too.
FileSummary write_safetensors(const std::string& path, const NamedTensors& tensors, const Metadata& metadata = {});

// An open file, mapped into memory: nothing is read before it is asked for. RunError for a file that is truncated, has
// a broken header, offsets that overlap or leave the file, a dtype that is not known.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;

  std::vector<std::string> names() const;  // in the order of their bytes
  bool has(const std::string& name) const;
  const Metadata& metadata() const;
  // A copy on the CPU. RunError names the tensor if it is missing, with the nearest name.
  at::Tensor tensor(const std::string& name) const;
  // Copies into `target` (any device). RunError when shape or dtype differ, with both.
  void copy_into(const std::string& name, at::Tensor& target) const;
  NamedTensors all() const;

 private:
  struct Contents;
  std::unique_ptr<Contents> contents_;
};

}  // namespace switchyard
