#include "train/manifest.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "base/text.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr const char* kFormat = "switchyard checkpoint";

std::string manifest_path(const std::string& folder) { return (fs::path(folder) / kManifestName).string(); }
std::string count(std::uint64_t bytes) { return with_commas(static_cast<std::int64_t>(bytes)); }

}  // namespace

bool has_manifest(const std::string& folder) { return fs::exists(manifest_path(folder)); }

void write_manifest(const std::string& folder, const Manifest& manifest) {
  Json json = {{"format", kFormat}, {"version", manifest.version}, {"step", manifest.step}};
  json["held_out_loss"] = manifest.held_out_loss ? Json(*manifest.held_out_loss) : Json();
  for (const auto& [name, summary] : manifest.files) {
    json["files"][name] = {{"bytes", summary.bytes}, {"checksum", summary.checksum}};
  }
  write_file_atomic(manifest_path(folder), json.dump(2) + "\n");
}

Manifest read_manifest(const std::string& folder) {
  if (!fs::is_directory(folder)) throw RunError("no checkpoint at " + folder);
  if (!has_manifest(folder)) throw RunError(folder + " has no " + kManifestName + ": its save was interrupted");
  const std::string path = manifest_path(folder);
  const Json json = Json::parse(read_file(path), nullptr, false);
  try {
    if (!json.is_object() || json.at("format") != kFormat)
      throw RunError(path + " is not the manifest of a checkpoint");
    Manifest manifest;
    manifest.version = json.at("version").get<int>();
    if (manifest.version > kCheckpointVersion) {
      throw NewerFormatError(
          format("%s has format version %d, this program reads up to %d: use the newer program that "
                 "wrote it, or move the folder away",
                 folder.c_str(), manifest.version, kCheckpointVersion));
    }
    manifest.step = json.at("step").get<std::int64_t>();
    if (!json.at("held_out_loss").is_null()) manifest.held_out_loss = json.at("held_out_loss").get<double>();
    for (const auto& [name, file] : json.at("files").items()) {
      manifest.files[name] = {file.at("bytes").get<std::uint64_t>(), file.at("checksum").get<std::string>()};
    }
    return manifest;
  } catch (const Json::exception& error) { throw RunError(path + " is corrupted: " + error.what()); }
}

void verify_files(const std::string& folder, const Manifest& manifest, bool checksums) {
  for (const auto& [name, expected] : manifest.files) {
    const std::string path = (fs::path(folder) / name).string();
    if (!fs::exists(path)) throw RunError(path + " is missing");
    const std::uint64_t bytes = fs::file_size(path);
    if (bytes != expected.bytes) {
      throw RunError(path + " is truncated: " + count(bytes) + " bytes, " + count(expected.bytes) + " were written");
    }
    if (checksums && summarise_file(path).checksum != expected.checksum) {
      throw RunError(path + " is corrupted: its checksum is not the one written");
    }
  }
}

}  // namespace switchyard
