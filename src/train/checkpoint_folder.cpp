// Which checkpoints a run keeps, and how one takes another's place without a moment at which none is valid.
#include <algorithm>
#include <filesystem>
#include <system_error>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text.h"
#include "train/checkpoint.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStepPrefix = "step-";
constexpr const char* kTemporaryPrefix = "writing-";
constexpr const char* kReplacedPrefix = "replaced-";  // a valid checkpoint of a step that is being saved again
constexpr const char* kBestName = "BEST";             // its text is the name of a step folder

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}
std::string step_name(std::int64_t step) { return format("%s%08lld", kStepPrefix, static_cast<long long>(step)); }

std::vector<std::string> folders_with(const std::string& path, const std::string& prefix) {
  std::vector<std::string> names;
  std::error_code missing;
  for (const auto& entry : fs::directory_iterator(path, missing)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_directory() && starts_with(name, prefix)) names.push_back(name);
  }
  // Longer names are later steps once the eight digits overflow.
  std::sort(names.begin(), names.end(),
            [](const std::string& a, const std::string& b) { return std::pair(a.size(), a) > std::pair(b.size(), b); });
  return names;
}

std::uint64_t bytes_of(const Snapshot& snapshot) {
  std::uint64_t bytes = 0;
  for (const NamedTensors* tensors : {&snapshot.weights, &snapshot.optimizer, &snapshot.routing}) {
    for (const auto& [name, tensor] : *tensors) bytes += tensor.nbytes();
  }
  return bytes + snapshot.state_json.size() + snapshot.given_config_json.size() + snapshot.resolved_config_json.size();
}

void create_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) throw RunError("cannot create " + path + ": " + error.message());
}

void rename_folder(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error)
    throw RunError("cannot rename " + from.string() + " to " + to.filename().string() + ": " + error.message());
}

// What could not be deleted costs space, not correctness.
void remove_folder(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) log::warn("cannot delete " + path.string() + ": " + error.message());
}

// The manifest goes first: a kill in between leaves an unmarked folder, not a checkpoint with files missing.
void remove_checkpoint(const fs::path& path) {
  std::error_code ignored;
  fs::remove(path / kManifestName, ignored);
  remove_folder(path);
}

void require_space(const std::string& folder, std::uint64_t bytes) {
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error || space.available >= bytes) return;
  throw RunError(
      format("no room for a checkpoint in %s: it needs %s, %s are free; free some, lower "
             "train.keep_checkpoints, or set train.out to another disk",
             folder.c_str(), human_bytes(static_cast<double>(bytes)).c_str(),
             human_bytes(static_cast<double>(space.available)).c_str()));
}

}  // namespace

CheckpointFolder::CheckpointFolder(std::string run_folder, int keep)
    : path_((fs::path(run_folder) / "checkpoints").string()), keep_(std::max(1, keep)) {}

std::string CheckpointFolder::save(std::int64_t step, const Snapshot& snapshot, std::optional<double> held_out_loss) {
  create_folder(path_);
  clean();
  require_space(path_, bytes_of(snapshot));
  const fs::path root = path_;
  const fs::path final = root / step_name(step), temporary = root / (kTemporaryPrefix + step_name(step));
  const fs::path replaced = root / (kReplacedPrefix + step_name(step));
  try {
    create_folder(temporary.string());
    Manifest manifest;
    manifest.step = step;
    manifest.held_out_loss = held_out_loss;
    manifest.files = write_snapshot(temporary.string(), snapshot);
    if (fs::exists(final)) rename_folder(final, replaced);
    rename_folder(temporary, final);
    sync_folder(path_);
    write_manifest(final.string(), manifest);
  } catch (const RunError& error) {
    remove_folder(temporary);
    throw RunError(format("checkpoint of step %lld (%s) not written, the previous one stays: %s",
                          static_cast<long long>(step), human_bytes(static_cast<double>(bytes_of(snapshot))).c_str(),
                          error.what()));
  }
  if (held_out_loss) mark_best(step, *held_out_loss);
  prune(step);
  return final.string();
}

std::optional<CheckpointInfo> CheckpointFolder::latest_valid() const {
  std::vector<std::string> names = folders_with(path_, kStepPrefix);
  for (const std::string& name : folders_with(path_, kReplacedPrefix)) names.push_back(name);
  const auto step_of = [](const std::string& name) { return name.substr(name.find(kStepPrefix)); };
  std::stable_sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    return std::pair(step_of(a).size(), step_of(a)) > std::pair(step_of(b).size(), step_of(b));
  });
  for (const std::string& name : names) {
    const std::string folder = (fs::path(path_) / name).string();
    try {
      return inspect_checkpoint(folder);
    } catch (const NewerFormatError&) { throw; } catch (const RunError& error) {
      log::warn(std::string("skipping a checkpoint that cannot be used: ") + error.what());
    }
  }
  return std::nullopt;
}

std::optional<CheckpointInfo> CheckpointFolder::best() const {
  const std::string marker = (fs::path(path_) / kBestName).string();
  if (!fs::exists(marker)) return std::nullopt;
  std::string name = read_file(marker);
  while (!name.empty() && name.back() == '\n') name.pop_back();
  const std::string folder = (fs::path(path_) / name).string();
  if (name.empty() || !has_manifest(folder)) return std::nullopt;
  try {
    return inspect_checkpoint(folder, false);
  } catch (const NewerFormatError&) { throw; } catch (const RunError& error) {
    log::warn(std::string("the checkpoint marked best cannot be used: ") + error.what());
    return std::nullopt;
  }
}

void CheckpointFolder::mark_best(std::int64_t step, double held_out_loss) const {
  const std::optional<CheckpointInfo> previous = best();
  // The negated comparison keeps a NaN from ever taking the place.
  if (previous && previous->step != step && previous->held_out_loss && !(held_out_loss < *previous->held_out_loss))
    return;
  write_file_atomic((fs::path(path_) / kBestName).string(), step_name(step) + "\n");
}

void CheckpointFolder::prune(std::int64_t step) const {
  const std::optional<CheckpointInfo> best_checkpoint = best();
  int kept = 0;
  for (const std::string& name : folders_with(path_, kStepPrefix)) {
    const fs::path folder = fs::path(path_) / name;
    const bool later = std::pair(name.size(), name) > std::pair(step_name(step).size(), step_name(step));
    if (later || !has_manifest(folder.string())) continue;
    const bool keeps = ++kept <= keep_ || (best_checkpoint && best_checkpoint->path == folder.string());
    if (!keeps) remove_checkpoint(folder);
  }
  clean();
}

void CheckpointFolder::clean() const {
  if (!fs::is_directory(path_)) return;
  for (const std::string& name : folders_with(path_, kTemporaryPrefix)) remove_folder(fs::path(path_) / name);
  for (const std::string& name : folders_with(path_, kReplacedPrefix)) {
    const fs::path replaced = fs::path(path_) / name;
    const fs::path original = fs::path(path_) / name.substr(std::string(kReplacedPrefix).size());
    if (has_manifest(original.string())) {
      remove_checkpoint(replaced);
    } else {  // its successor was never marked valid
      remove_folder(original);
      rename_folder(replaced, original);
    }
  }
  for (const std::string& name : folders_with(path_, kStepPrefix)) {
    const fs::path folder = fs::path(path_) / name;
    if (!has_manifest(folder.string())) remove_folder(folder);
  }
  std::vector<fs::path> unfinished;  // the small files that name a checkpoint, killed before they were renamed
  for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
    if (entry.path().filename().string().rfind("BEST.tmp.", 0) == 0) unfinished.push_back(entry.path());
  }
  for (const fs::path& file : unfinished) fs::remove(file);
}

std::string find_checkpoint(const std::string& path) {
  if (has_manifest(path)) return path;
  fs::path run = fs::path(path) / "";  // with one trailing slash, whatever was typed
  run = run.parent_path();
  if (run.filename() == "checkpoints") run = run.parent_path();
  const CheckpointFolder folder(run.string(), 1);
  if (const auto best = folder.best()) return best->path;
  if (const auto latest = folder.latest_valid()) return latest->path;
  throw ConfigError("no checkpoint at " + path +
                    ": give a folder step-…, or a run folder that holds checkpoints/step-…");
}

}  // namespace switchyard
