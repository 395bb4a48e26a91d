// Names of kernels as the profile's table shows them.
#include "train/profile.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

struct NameCase {
  const char* what;
  std::string name, shown;
};

TEST(ProfileTest, NamesAreShortAndStillTellKernelsApart) {
  const std::vector<NameCase> cases = {
      {"a plain name", "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN", "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN"},
      {"a copy's direction", "Memcpy DtoD (Device -> Device)", "Memcpy DtoD (Device -> Device)"},
      {"parameters", "void add_norm_kernel<bf16, 4>(float const*, int)", "add_norm_kernel<bf16, 4>"},
      {"namespaces", "void at::native::(anonymous namespace)::f<at::native::Add<c10::BFloat16> >(int)",
       "f<Add<BFloat16> >"},
      {"a value in the arguments", "void f<(int)3, (g<1>)2>(char*)", "f<(int)3, (g<1>)2>"},
      {"long arguments", "void f<" + std::string(200, 'x') + ">(int)", "f<" + std::string(89, 'x') + "..."},
      {"an operator", "aten::mm", "aten::mm"},
      {"nothing", "", ""},
  };
  for (const NameCase& c : cases) EXPECT_EQ(short_kernel_name(c.name), c.shown) << c.what;
}

}  // namespace
}  // namespace switchyard
