#include "train/gpu_architectures.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(GpuArchitectures, RunOnTheGpusTheyAreMadeFor) {
  struct Case {
    const char* architectures;
    int major, minor;
    bool runs;
  };
  for (const Case& c : {Case{"90a-real", 9, 0, true}, Case{"90a-real", 8, 0, false}, Case{"90a-real", 10, 0, false},
                        Case{"80-real", 8, 0, true}, Case{"80-real", 8, 6, true}, Case{"86-real", 8, 0, false},
                        Case{"80-real", 9, 0, false}, Case{"80-virtual", 9, 0, true}, Case{"80", 12, 0, true},
                        Case{"80", 7, 5, false}, Case{"90a-real,80-virtual", 8, 9, true}, Case{"90a", 10, 0, false},
                        Case{"120f-real", 12, 1, true}, Case{"100a-real", 10, 0, true}, Case{"native", 8, 0, true}})
    EXPECT_EQ(has_kernels_for(c.architectures, c.major, c.minor), c.runs)
        << c.architectures << " on " << c.major << "." << c.minor;
}

}  // namespace
}  // namespace switchyard
