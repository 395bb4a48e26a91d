#include "data/byte_source.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#ifdef SWITCHYARD_WITH_ZLIB
#include <zlib.h>
#endif
#ifdef SWITCHYARD_WITH_ZSTD
#include <zstd.h>
#endif

#include "base/error.h"
#include "base/files.h"

namespace switchyard {
namespace {

constexpr std::size_t kBlock = 1 << 18;

bool ends_with(const std::string& text, const char* end) {
  const std::size_t length = std::strlen(end);
  return text.size() >= length && text.compare(text.size() - length, length, end) == 0;
}

class PlainFile : public ByteSource {
 public:
  explicit PlainFile(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rb")) {
    if (!file_) throw RunError("cannot open " + path + ": " + std::strerror(errno));
  }
  ~PlainFile() override { std::fclose(file_); }
  std::size_t read(char* out, std::size_t size) override {
    const std::size_t given = std::fread(out, 1, size, file_);
    if (given < size && std::ferror(file_)) throw RunError("cannot read " + path_ + ": " + std::strerror(errno));
    return given;
  }

 private:
  std::string path_;
  std::FILE* file_;
};

#ifdef SWITCHYARD_WITH_ZLIB
class GzipFile : public ByteSource {
 public:
  explicit GzipFile(const std::string& path) : path_(path), file_(gzopen(path.c_str(), "rb")) {
    if (!file_) throw RunError("cannot open " + path + ": " + std::strerror(errno));
    gzbuffer(file_, kBlock);
  }
  ~GzipFile() override { gzclose(file_); }
  std::size_t read(char* out, std::size_t size) override {
    const int given = gzread(file_, out, static_cast<unsigned>(size));
    int code = Z_OK;
    const char* reason = gzerror(file_, &code);
    // A file cut short gives its last bytes first and says Z_BUF_ERROR.
    if (given < 0 || code == Z_BUF_ERROR) throw RunError("cannot unpack " + path_ + ": " + reason);
    return static_cast<std::size_t>(given);
  }

 private:
  std::string path_;
  gzFile file_;
};
#endif

#ifdef SWITCHYARD_WITH_ZSTD
class ZstdFile : public ByteSource {
 public:
  explicit ZstdFile(const std::string& path)
      : path_(path), file_(path), stream_(ZSTD_createDStream()), packed_(kBlock) {}
  ~ZstdFile() override { ZSTD_freeDStream(stream_); }
  std::size_t read(char* out, std::size_t size) override {
    ZSTD_outBuffer output{out, size, 0};
    while (output.pos == 0) {
      if (input_.pos == input_.size) {
        input_ = {packed_.data(), file_.read(packed_.data(), packed_.size()), 0};
        if (input_.size == 0) {
          if (inside_frame_) throw RunError("cannot unpack " + path_ + ": the file is cut short");
          return 0;
        }
      }
      const std::size_t left = ZSTD_decompressStream(stream_, &output, &input_);
      if (ZSTD_isError(left)) throw RunError("cannot unpack " + path_ + ": " + ZSTD_getErrorName(left));
      inside_frame_ = left != 0;
    }
    return output.pos;
  }

 private:
  std::string path_;
  PlainFile file_;
  ZSTD_DStream* stream_;
  std::vector<char> packed_;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  bool inside_frame_ = false;
};
#endif

}  // namespace

std::unique_ptr<ByteSource> open_bytes(const std::string& path) {
  if (ends_with(path, ".gz")) {
#ifdef SWITCHYARD_WITH_ZLIB
    return std::make_unique<GzipFile>(path);
#else
    throw ConfigError("cannot read " + path +
                      ": this build has no zlib; install zlib1g-dev and build again, or unpack the file");
#endif
  }
  if (ends_with(path, ".zst")) {
#ifdef SWITCHYARD_WITH_ZSTD
    return std::make_unique<ZstdFile>(path);
#else
    throw ConfigError("cannot read " + path +
                      ": this build has no zstd; install libzstd-dev and build again, or unpack the file");
#endif
  }
  return std::make_unique<PlainFile>(path);
}

std::string without_compression(const std::string& name) {
  if (ends_with(name, ".gz")) return name.substr(0, name.size() - 3);
  if (ends_with(name, ".zst")) return name.substr(0, name.size() - 4);
  return name;
}

std::string read_unpacked(const std::string& path) {
  if (without_compression(path) == path) {
    const MappedFile file(path);
    return std::string(file.data() ? file.data() : "", file.size());
  }
  const auto source = open_bytes(path);
  std::string contents;
  std::size_t size = 0;
  for (;;) {
    contents.resize(size + kBlock);
    const std::size_t given = source->read(contents.data() + size, kBlock);
    size += given;
    if (given == 0) break;
  }
  contents.resize(size);
  return contents;
}

bool LineReader::next(std::string& line) {
  std::size_t searched = begin_;
  for (;;) {
    const std::size_t newline = buffer_.find('\n', searched);
    if (newline != std::string::npos) {
      line.assign(buffer_, begin_, newline - begin_);
      begin_ = newline + 1;
      return true;
    }
    if (ended_) {
      line.assign(buffer_, begin_, std::string::npos);
      const bool any = begin_ < buffer_.size();
      begin_ = buffer_.size();
      return any;
    }
    buffer_.erase(0, begin_);
    begin_ = 0;
    searched = buffer_.size();
    buffer_.resize(searched + kBlock);
    const std::size_t given = source_->read(buffer_.data() + searched, kBlock);
    buffer_.resize(searched + given);
    ended_ = given == 0;
  }
}

}  // namespace switchyard
