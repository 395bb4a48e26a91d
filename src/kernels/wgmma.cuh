// kernels/wgmma.cuh: d[64, N] (+)= a[64, 16] b[16, N] in bf16 with fp32 sums, asynchronous, by one warpgroup. a lies in
// shared memory, or in registers.
#pragma once

#include <cstdint>

namespace switchyard::kernels::hopper {

// d[4i + j] of a thread: row 16 warp + lane / 4 (+8 for j >= 2), column 8i + 2 (lane % 4) + j % 2.
// kMnMajorA, kMnMajorB: 1 where the operand lies M- or N-major, else K-major. accumulate 0: d is overwritten.
#define SWITCHYARD_SUMS_8(d, i)                                                                               \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define SWITCHYARD_SUMS_32(d, i) \
  SWITCHYARD_SUMS_8(d, i), SWITCHYARD_SUMS_8(d, i + 8), SWITCHYARD_SUMS_8(d, i + 16), SWITCHYARD_SUMS_8(d, i + 24)

template <int kMnMajorA, int kMnMajorB>
__device__ __forceinline__ void multiply(float (&d)[128], std::uint64_t a, std::uint64_t b, int accumulate) {
  // clang-format off
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
      "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
      "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, "
      "%65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, "
      "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, "
      "%106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, "
      "%124, %125, %126, %127"
      "}, %128, %129, p, 1, 1, %131, %132;\n}\n"
      : SWITCHYARD_SUMS_32(d, 0), SWITCHYARD_SUMS_32(d, 32), SWITCHYARD_SUMS_32(d, 64), SWITCHYARD_SUMS_32(d, 96)
      : "l"(a), "l"(b), "r"(accumulate), "n"(kMnMajorA), "n"(kMnMajorB));
  // clang-format on
}

template <int kMnMajorA, int kMnMajorB>
__device__ __forceinline__ void multiply(float (&d)[96], std::uint64_t a, std::uint64_t b, int accumulate) {
  // clang-format off
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
      "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
      "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, "
      "%65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, "
      "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
      "}, %96, %97, p, 1, 1, %99, %100;\n}\n"
      : SWITCHYARD_SUMS_32(d, 0), SWITCHYARD_SUMS_32(d, 32), SWITCHYARD_SUMS_32(d, 64)
      : "l"(a), "l"(b), "r"(accumulate), "n"(kMnMajorA), "n"(kMnMajorB));
  // clang-format on
}

template <int kMnMajorA, int kMnMajorB>
__device__ __forceinline__ void multiply(float (&d)[64], std::uint64_t a, std::uint64_t b, int accumulate) {
  // clang-format off
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
      "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
      "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, %67, %68;\n}\n"
      : SWITCHYARD_SUMS_32(d, 0), SWITCHYARD_SUMS_32(d, 32)
      : "l"(a), "l"(b), "r"(accumulate), "n"(kMnMajorA), "n"(kMnMajorB));
  // clang-format on
}

#define SWITCHYARD_NEW_8(d, i)                                                                                \
  "=f"(d[i]), "=f"(d[i + 1]), "=f"(d[i + 2]), "=f"(d[i + 3]), "=f"(d[i + 4]), "=f"(d[i + 5]), "=f"(d[i + 6]), \
      "=f"(d[i + 7])
#define SWITCHYARD_PRODUCT_64                                                             \
  "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "

// d += a b. d = a b: what was in d is no input, so that the compiler need not bring it there.
template <int kMnMajorA, int kMnMajorB>
__device__ __forceinline__ void multiply(float (&d)[32], std::uint64_t a, std::uint64_t b) {
  asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n" SWITCHYARD_PRODUCT_64 "%32, %33, p, 1, 1, %34, %35;\n}\n"
               : SWITCHYARD_SUMS_32(d, 0)
               : "l"(a), "l"(b), "n"(kMnMajorA), "n"(kMnMajorB));
}
template <int kMnMajorA, int kMnMajorB>
__device__ __forceinline__ void multiply_anew(float (&d)[32], std::uint64_t a, std::uint64_t b) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n" SWITCHYARD_PRODUCT_64 "%32, %33, p, 1, 1, %34, %35;\n}\n"
               : SWITCHYARD_NEW_8(d, 0), SWITCHYARD_NEW_8(d, 8), SWITCHYARD_NEW_8(d, 16), SWITCHYARD_NEW_8(d, 24)
               : "l"(a), "l"(b), "n"(kMnMajorA), "n"(kMnMajorB));
}

// a[4] of a thread, two columns each, the lower one first: (row, 2 (lane % 4)), row 8 below, and both 8 columns on; row
// as of d. So d of a product, packed by pairs, is a of the next. They must not change before the products are complete.
template <int kMnMajorB>
__device__ __forceinline__ void multiply(float (&d)[32], const std::uint32_t (&a)[4], std::uint64_t b) {
  asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n" SWITCHYARD_PRODUCT_64
               "{%32, %33, %34, %35}, %36, p, 1, 1, %37;\n}\n"
               : SWITCHYARD_SUMS_32(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kMnMajorB));
}

#undef SWITCHYARD_PRODUCT_64
#undef SWITCHYARD_NEW_8
#undef SWITCHYARD_SUMS_32
#undef SWITCHYARD_SUMS_8

}  // namespace switchyard::kernels::hopper
