// A file's bytes in order, unpacked on the way when the name ends in .gz or .zst.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace switchyard {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual std::size_t read(char* out, std::size_t size) = 0;  // bytes given; 0 at the end. RunError when damaged
};

// ConfigError when this build cannot unpack the file, RunError when it cannot be opened.
std::unique_ptr<ByteSource> open_bytes(const std::string& path);

std::string without_compression(const std::string& name);  // "a.jsonl.gz" -> "a.jsonl"
std::string read_unpacked(const std::string& path);        // all of it

// The file line by line, without the newline.
class LineReader {
 public:
  explicit LineReader(const std::string& path) : source_(open_bytes(path)) {}
  bool next(std::string& line);  // false at the end

 private:
  std::unique_ptr<ByteSource> source_;
  std::string buffer_;
  std::size_t begin_ = 0;
  bool ended_ = false;
};

}  // namespace switchyard
