#include "train/checkpoint.h"

#include <filesystem>

#include "base/error.h"
#include "base/files.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWeights = "weights.safetensors";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kRouting = "routing.safetensors";
constexpr const char* kState = "state.json";
constexpr const char* kGivenConfig = "given_config.json";
constexpr const char* kResolvedConfig = "config.json";

std::string in(const std::string& folder, const char* name) { return (fs::path(folder) / name).string(); }

FileSummary write_text(const std::string& path, const std::string& text) {
  write_file_atomic(path, text);
  return summarise_file(path);
}

Manifest checked_manifest(const std::string& path, bool checksums) {
  const Manifest manifest = read_manifest(path);
  verify_files(path, manifest, checksums);
  return manifest;
}

// The tensors of one file, whose checksum alone is verified.
NamedTensors load_one(const std::string& path, const char* name) {
  Manifest one = read_manifest(path);
  for (auto file = one.files.begin(); file != one.files.end();)
    file = file->first == name ? std::next(file) : one.files.erase(file);
  verify_files(path, one, true);
  return SafetensorsFile(in(path, name)).all();
}

}  // namespace

std::map<std::string, FileSummary> write_snapshot(const std::string& folder, const Snapshot& snapshot) {
  std::map<std::string, FileSummary> files;
  files[kWeights] = write_safetensors(in(folder, kWeights), snapshot.weights, {{"format", "pt"}});
  files[kOptimizer] = write_safetensors(in(folder, kOptimizer), snapshot.optimizer, {{"format", "pt"}});
  if (!snapshot.routing.empty())
    files[kRouting] = write_safetensors(in(folder, kRouting), snapshot.routing, {{"format", "pt"}});
  files[kState] = write_text(in(folder, kState), snapshot.state_json);
  files[kGivenConfig] = write_text(in(folder, kGivenConfig), snapshot.given_config_json);
  files[kResolvedConfig] = write_text(in(folder, kResolvedConfig), snapshot.resolved_config_json);
  sync_folder(folder);
  return files;
}

CheckpointInfo inspect_checkpoint(const std::string& path, bool verify_checksums) {
  const Manifest manifest = checked_manifest(path, verify_checksums);
  return {manifest.step, manifest.version, manifest.held_out_loss, path};
}

Snapshot load_checkpoint(const std::string& path, bool verify) {
  const Manifest manifest = checked_manifest(path, verify);
  Snapshot snapshot;
  snapshot.weights = SafetensorsFile(in(path, kWeights)).all();
  snapshot.optimizer = SafetensorsFile(in(path, kOptimizer)).all();
  if (manifest.files.count(kRouting)) snapshot.routing = SafetensorsFile(in(path, kRouting)).all();
  snapshot.state_json = read_file(in(path, kState));
  snapshot.given_config_json = read_file(in(path, kGivenConfig));
  snapshot.resolved_config_json = read_file(in(path, kResolvedConfig));
  return snapshot;
}

NamedTensors load_weights(const std::string& path) { return load_one(path, kWeights); }

NamedTensors load_routing(const std::string& path) {
  return read_manifest(path).files.count(kRouting) ? load_one(path, kRouting) : NamedTensors{};
}

std::string load_state_json(const std::string& path) {
  checked_manifest(path, false);
  return read_file(in(path, kState));
}

std::string load_config_json(const std::string& path, bool resolved) {
  checked_manifest(path, false);
  return read_file(in(path, resolved ? kResolvedConfig : kGivenConfig));
}

}  // namespace switchyard
