#include "train/memory_advice.h"

#include <ATen/ATen.h>

#include <new>

#include "base/error.h"

namespace switchyard {

int with_memory_advice(const std::function<int()>& body, const std::function<std::string()>& advice) {
  const auto out_of_memory = [&](const char* device) {
    return RunError(std::string("out of ") + device + " memory: " + advice());
  };
  try {
    return body();
  } catch (const c10::OutOfMemoryError&) { throw out_of_memory("GPU"); } catch (const std::bad_alloc&) {
    throw out_of_memory("host");
  } catch (const c10::Error& error) {
    // torch's CPU allocator throws its general error, in words of the platform.
    const std::string what = error.what();
    for (const char* words : {"not enough memory", "can't allocate memory"})
      if (what.find(words) != std::string::npos) throw out_of_memory("host");
    throw RunError(error.what_without_backtrace());
  }
}

}  // namespace switchyard
