#include "train/profile.h"

#include <kineto/ActivityType.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>
#include <vector>

#include "base/files.h"
#include "base/log.h"
#include "base/text.h"
#include "train/replay.h"

namespace switchyard {
namespace {

namespace profiler = torch::autograd::profiler;
using Clock = std::chrono::steady_clock;
using libkineto::ActivityType;

constexpr std::size_t kRows = 40, kArgumentCharacters = 90;

struct Span {
  std::string name;
  std::uint64_t thread = 0, begin_ns = 0, end_ns = 0, self_ns = 0;
  std::uint64_t duration_ns() const { return end_ns - begin_ns; }
};

// What ran on the GPU. Annotations span kernels and would count them twice.
bool ran_on_gpu(const profiler::KinetoEvent& event) {
  const auto type = static_cast<ActivityType>(event.activityType());
  return type == ActivityType::CONCURRENT_KERNEL || type == ActivityType::GPU_MEMCPY ||
         type == ActivityType::GPU_MEMSET;
}

// Operators call each other: the time of each is its own, without that of those it called.
void take_out_the_called(std::vector<Span>& spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    if (a.thread != b.thread) return a.thread < b.thread;
    return a.begin_ns != b.begin_ns ? a.begin_ns < b.begin_ns : a.end_ns > b.end_ns;
  });
  std::vector<Span*> open;
  for (Span& span : spans) {
    while (!open.empty() && (open.back()->thread != span.thread || open.back()->end_ns <= span.begin_ns))
      open.pop_back();
    if (!open.empty()) open.back()->self_ns -= std::min(open.back()->self_ns, span.duration_ns());
    open.push_back(&span);
  }
}

std::vector<Span> spans_of(const profiler::ProfilerResult& result, bool gpu) {
  std::vector<Span> spans;
  for (const profiler::KinetoEvent& event : result.events()) {
    const bool wanted = gpu ? ran_on_gpu(event) : event.activityType() == static_cast<int>(ActivityType::CPU_OP);
    if (!wanted || event.isHiddenEvent()) continue;
    spans.push_back({event.name(), event.startThreadId(), event.startNs(), event.endNs(), event.durationNs()});
  }
  if (!gpu) take_out_the_called(spans);
  return spans;
}

// Time in which at least one kernel ran; kernels of several streams overlap.
double busy_ms(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin_ns < b.begin_ns; });
  std::uint64_t busy = 0, until = 0;
  for (const Span& span : spans) {
    if (span.end_ns <= until) continue;
    busy += span.end_ns - std::max(until, span.begin_ns);
    until = span.end_ns;
  }
  return static_cast<double>(busy) * 1e-6;
}

std::string table_of(const std::vector<Span>& spans, double wall_ms, std::int64_t step, bool gpu) {
  struct Row {
    double ms = 0;
    std::int64_t calls = 0;
  };
  std::map<std::string, Row> by_name;
  double total_ms = 0;
  for (const Span& span : spans) {
    Row& row = by_name[short_kernel_name(span.name)];
    row.ms += static_cast<double>(span.self_ns) * 1e-6;
    ++row.calls;
    total_ms += static_cast<double>(span.self_ns) * 1e-6;
  }
  std::vector<std::pair<std::string, Row>> rows(by_name.begin(), by_name.end());
  std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });

  std::string text = format("step %lld: wall time %.2f ms, %s %.2f ms in %zu calls", static_cast<long long>(step),
                            wall_ms, gpu ? "GPU kernels" : "operators", total_ms, spans.size());
  text += gpu ? format(", GPU busy %.2f ms\n", busy_ms(spans)) : "\n";
  text += "  total ms    calls    us/call   share  name\n";
  for (std::size_t i = 0; i < std::min(rows.size(), kRows); ++i) {
    const auto& [name, row] = rows[i];
    text +=
        format("%10.3f %8lld %10.1f %6.2f%%  %s\n", row.ms, static_cast<long long>(row.calls),
               1e3 * row.ms / static_cast<double>(row.calls), 100 * row.ms / std::max(total_ms, 1e-9), name.c_str());
  }
  if (rows.size() > kRows) {
    Row rest;
    for (std::size_t i = kRows; i < rows.size(); ++i) rest.ms += rows[i].second.ms, rest.calls += rows[i].second.calls;
    text += format("%10.3f %8lld %10.1f %6.2f%%  %zu others\n", rest.ms, static_cast<long long>(rest.calls),
                   1e3 * rest.ms / static_cast<double>(rest.calls), 100 * rest.ms / std::max(total_ms, 1e-9),
                   rows.size() - kRows);
  }
  return text;
}

torch::profiler::impl::ProfilerConfig profiler_config() {
  return torch::profiler::impl::ProfilerConfig(torch::profiler::impl::ProfilerState::KINETO);
}

std::set<torch::profiler::impl::ActivityType> activities(int device) {
  using Activity = torch::profiler::impl::ActivityType;
  return device < 0 ? std::set<Activity>{Activity::CPU} : std::set<Activity>{Activity::CPU, Activity::CUDA};
}

void remove_all(std::string& text, const std::string& part) {
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at)) text.erase(at, part.size());
}

}  // namespace

std::string short_kernel_name(const std::string& name) {
  std::string text = name;
  for (const char* part : {"(anonymous namespace)::", "at::native::", "switchyard::kernels::", "c10::"})
    remove_all(text, part);
  if (text.rfind("void ", 0) == 0) text.erase(0, 5);
  // The parameters open at the first bracket outside of the template's; what came from a lambda has brackets inside.
  int depth = 0;
  std::size_t arguments = std::string::npos;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '<' && depth++ == 0) arguments = std::min(arguments, i);
    if (text[i] == '>' && depth > 0 && text[i - 1] != '-') --depth;
    if (text[i] == '(' && depth == 0 && i > 0 && text[i - 1] != ' ') {
      text.erase(i);
      break;
    }
  }
  if (arguments != std::string::npos && text.size() > arguments + kArgumentCharacters)
    text = text.substr(0, arguments + kArgumentCharacters) + "...";
  return text;
}

StepProfile::StepProfile(std::int64_t step, int device, std::string folder)
    : step_(step), device_(device), folder_(std::move(folder)) {}

template <class Call>
void StepProfile::guarded(const char* doing, Call call) {
  if (failed_) return;
  try {
    call();
  } catch (const std::exception& error) {
    failed_ = true;
    const std::string what = error.what();
    log::warn(format("train.profile_step: the profiler failed to %s, the run goes on without: ", doing) +
              what.substr(0, what.find('\n')));
  }
}

void StepProfile::before(std::int64_t step) {
  if (step_ == 0 || (step != step_ && step + 1 != step_)) return;
  if (!prepared_) {
    prepared_ = true;
    // Graphs that are alive when CUPTI is taken down have crashed their process.
    setenv("TEARDOWN_CUPTI", "0", /*overwrite=*/0);
    if (device_ < 0) setenv("KINETO_LOG_LEVEL", "5", 0);  // else it complains that there is no GPU
    synchronize_device(device_);
    guarded("prepare", [&] { profiler::prepareProfiler(profiler_config(), activities(device_)); });
  }
  if (step != step_) return;
  synchronize_device(device_);
  guarded("start", [&] { profiler::enableProfiler(profiler_config(), activities(device_)); });
  start_ = Clock::now();
}

Clock::duration StepProfile::after(std::int64_t step) {
  if (step_ == 0 || step != step_) return {};
  synchronize_device(device_);
  const Clock::time_point end = Clock::now();
  guarded("give its result", [&] { write(); });
  return Clock::now() - end;
}

void StepProfile::write() {
  const double wall_ms = std::chrono::duration<double, std::milli>(Clock::now() - start_).count();
  const auto result = profiler::disableProfiler();
  const std::vector<Span> spans = spans_of(*result, device_ >= 0);
  if (spans.empty()) {
    log::warn(device_ < 0 ? "train.profile_step: the profiler recorded no operators"
                          : "train.profile_step: the profiler recorded no GPU kernels; CUPTI is missing, not permitted "
                            "on this machine, or used by another tool");
    return;
  }
  const std::string table = table_of(spans, wall_ms, step_, device_ >= 0);
  write_file_atomic(folder_ + "/profile.txt", table);
  result->save(folder_ + "/profile.json");
  log::info("profile of " + table);
}

}  // namespace switchyard
