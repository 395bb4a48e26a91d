#include "base/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/error.h"

namespace switchyard {
namespace {

[[noreturn]] void fail(const std::string& doing, const std::string& path) {
  throw RunError("cannot " + doing + " " + path + ": " + std::strerror(errno));
}

void sync_path(const std::string& path, int flags) {
  const int descriptor = ::open(path.c_str(), flags);
  if (descriptor < 0) fail("open", path);
  const int result = ::fsync(descriptor);
  ::close(descriptor);
  if (result != 0) fail("sync", path);
}

}  // namespace

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream || std::filesystem::is_directory(path)) fail("read", path);
  std::ostringstream contents;
  contents << stream.rdbuf();
  if (stream.bad()) fail("read", path);
  return contents.str();
}

void sync_file(const std::string& path) { sync_path(path, O_RDONLY); }
void sync_folder(const std::string& path) { sync_path(path.empty() ? "." : path, O_RDONLY | O_DIRECTORY); }

void write_file_atomic(const std::string& path, std::string_view contents) {
  const std::string temporary = path + ".tmp." + std::to_string(::getpid());
  {
    std::ofstream stream(temporary, std::ios::binary | std::ios::trunc);
    stream.write(contents.data(), static_cast<std::streamsize>(contents.size()));
    stream.close();
    if (!stream) fail("write", temporary);
  }
  sync_file(temporary);
  if (std::rename(temporary.c_str(), path.c_str()) != 0) fail("rename to", path);
  sync_folder(std::filesystem::path(path).parent_path().string());
}

std::string cannot_write_below(const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  fs::path nearest = fs::absolute(folder);
  while (!fs::exists(nearest, ignored) && nearest != nearest.parent_path()) nearest = nearest.parent_path();
  if (!fs::is_directory(nearest, ignored)) return nearest.string() + " is not a folder";
  std::string probe = (nearest / ".switchyard-XXXXXX").string();
  if (!::mkdtemp(probe.data())) return nearest.string() + " takes no new files: " + std::strerror(errno);
  ::rmdir(probe.c_str());
  return "";
}

std::uint64_t fnv1a(std::string_view bytes, std::uint64_t seed) {
  for (const char c : bytes) seed = (seed ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return seed;
}

MappedFile::MappedFile(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  if (descriptor < 0) fail("open", path);
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) fail("stat", path);
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ > 0) {
    void* mapping = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (mapping == MAP_FAILED) {
      ::close(descriptor);
      fail("map", path);
    }
    data_ = static_cast<const char*>(mapping);
  }
  ::close(descriptor);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<char*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept : data_(other.data_), size_(other.size_) {
  other.data_ = nullptr;
  other.size_ = 0;
}

}  // namespace switchyard
