// The file that makes a checkpoint valid: what it holds, and how to tell that it is whole. No torch.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "base/error.h"
#include "train/checksum.h"

namespace switchyard {

inline constexpr int kCheckpointVersion = 1;
inline constexpr const char* kManifestName = "MANIFEST.json";

// Written by a newer program: not damage, so no search for a valid checkpoint passes over it.
class NewerFormatError : public RunError {
 public:
  using RunError::RunError;
};

struct Manifest {
  int version = kCheckpointVersion;
  std::int64_t step = 0;
  std::optional<double> held_out_loss;
  std::map<std::string, FileSummary> files;  // by name within the folder
};

void write_manifest(const std::string& folder, const Manifest& manifest);  // atomic
// RunError: no manifest (an interrupted save), broken JSON, a format version newer than this program's.
Manifest read_manifest(const std::string& folder);
bool has_manifest(const std::string& folder);
// RunError names the first file that is missing, has another size or, with checksums, other bytes.
void verify_files(const std::string& folder, const Manifest& manifest, bool checksums);

}  // namespace switchyard
