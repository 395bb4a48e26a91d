// Files written so that a crash leaves the old one or the new one, never half of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace switchyard {

// The whole file. RunError with path and reason when it cannot be read.
std::string read_file(const std::string& path);
// Writes beside `path`, fsyncs, renames over it, fsyncs the folder. RunError on any failure.
void write_file_atomic(const std::string& path, std::string_view contents);
// Why files cannot be created in this folder, which need not exist yet; "" where they can. Leaves nothing behind.
std::string cannot_write_below(const std::string& folder);
void sync_file(const std::string& path);    // fsync of a file's contents
void sync_folder(const std::string& path);  // fsync of a folder's entries
std::uint64_t fnv1a(std::string_view bytes, std::uint64_t seed = 0xcbf29ce484222325ull);

// A read-only memory mapping, unmapped when destroyed. An empty file maps to size 0.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // RunError with path and reason
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;

  const char* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  const char* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace switchyard
