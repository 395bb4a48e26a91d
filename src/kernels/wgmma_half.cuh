// kernels/wgmma_half.cuh: as kernels/wgmma.cuh, d[64, N] (+)= a[64, 16] b[16, N], of fp16 operands; N = 64 to 256 by
// the number of sums, N / 2 a thread.
#pragma once

#include <cstdint>

namespace switchyard::kernels::hopper {

// Overloads on the number of sums; layouts as multiply() of kernels/wgmma.cuh; d is always added to.
#define SWITCHYARD_SUMS_8(d, i)                                                                               \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define SWITCHYARD_SUMS_32(d, i) \
  SWITCHYARD_SUMS_8(d, i), SWITCHYARD_SUMS_8(d, i + 8), SWITCHYARD_SUMS_8(d, i + 16), SWITCHYARD_SUMS_8(d, i + 24)
#define SWITCHYARD_NAMES_0                                                                                             \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30," \
  "%31"
#define SWITCHYARD_NAMES_32                                                                                            \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%" \
  "60,%61,%62,%63"
#define SWITCHYARD_NAMES_64                                                                                            \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%" \
  "92,%93,%94,%95"
#define SWITCHYARD_NAMES_96                                                                                           \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%" \
  "119,%120,%121,%122,%123,%124,%125,%126,%127"

template <int kMnMajorA, int kMnMajorB>
__device__ __forceinline__ void multiply_halves(float (&d)[32], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" SWITCHYARD_NAMES_0 "}, %32, %33, p, 1, 1, %35, %36;\n}\n"
      : SWITCHYARD_SUMS_32(d, 0)
      : "l"(a), "l"(b), "r"(1), "n"(kMnMajorA), "n"(kMnMajorB));
}

template <int kMnMajorA, int kMnMajorB>
__device__ __forceinline__ void multiply_halves(float (&d)[64], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" SWITCHYARD_NAMES_0 SWITCHYARD_NAMES_32
      "}, %64, %65, p, 1, 1, %67, %68;\n}\n"
      : SWITCHYARD_SUMS_32(d, 0), SWITCHYARD_SUMS_32(d, 32)
      : "l"(a), "l"(b), "r"(1), "n"(kMnMajorA), "n"(kMnMajorB));
}

template <int kMnMajorA, int kMnMajorB>
__device__ __forceinline__ void multiply_halves(float (&d)[96], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.f16.f16 {" SWITCHYARD_NAMES_0 SWITCHYARD_NAMES_32 SWITCHYARD_NAMES_64
      "}, %96, %97, p, 1, 1, %99, %100;\n}\n"
      : SWITCHYARD_SUMS_32(d, 0), SWITCHYARD_SUMS_32(d, 32), SWITCHYARD_SUMS_32(d, 64)
      : "l"(a), "l"(b), "r"(1), "n"(kMnMajorA), "n"(kMnMajorB));
}

template <int kMnMajorA, int kMnMajorB>
__device__ __forceinline__ void multiply_halves(float (&d)[128], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" SWITCHYARD_NAMES_0 SWITCHYARD_NAMES_32 SWITCHYARD_NAMES_64
          SWITCHYARD_NAMES_96 "}, %128, %129, p, 1, 1, %131, %132;\n}\n"
      : SWITCHYARD_SUMS_32(d, 0), SWITCHYARD_SUMS_32(d, 32), SWITCHYARD_SUMS_32(d, 64), SWITCHYARD_SUMS_32(d, 96)
      : "l"(a), "l"(b), "r"(1), "n"(kMnMajorA), "n"(kMnMajorB));
}

#undef SWITCHYARD_NAMES_96
#undef SWITCHYARD_NAMES_64
#undef SWITCHYARD_NAMES_32
#undef SWITCHYARD_NAMES_0
#undef SWITCHYARD_SUMS_32
#undef SWITCHYARD_SUMS_8

}  // namespace switchyard::kernels::hopper
