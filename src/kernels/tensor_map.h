// kernels/tensor_map.h: how copy engines of Hopper see a tensor. Host code.
#pragma once

#include <cuda.h>

#include <type_traits>

#include "kernels/cuda_check.h"
#include "kernels/types.h"

namespace switchyard::kernels {

// Through the runtime, so that the program does not link the driver and starts where there is none.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    SWITCHYARD_CUDA(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
    SWITCHYARD_ASSERT(entry != nullptr, "the driver lacks cuTensorMapEncodeTiled; it is older than CUDA 12");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  return encode;
}

// A tensor [depth, rows, columns] of bf16, fp16 or float, rows and depth this many elements apart, read or written in
// boxes of [1, box_rows, 128 bytes], swizzled. Reads outside it give zeros, writes there are dropped. Rows, and what
// lies between them, are multiples of 16 bytes.
template <class T>
CUtensorMap strided_tensor_map(const T* data, std::int64_t columns, std::int64_t rows, std::int64_t depth,
                               std::int64_t row_stride, std::int64_t depth_stride, int box_rows) {
  constexpr CUtensorMapDataType kType = std::is_same_v<T, bf16>   ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                        : std::is_same_v<T, fp16> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                  : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  static_assert(sizeof(T) == 2 || std::is_same_v<T, float>, "a map holds bf16, fp16 or float");
  const cuuint64_t size[3] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows),
                              static_cast<cuuint64_t>(depth)};
  const cuuint64_t stride[2] = {static_cast<cuuint64_t>(row_stride) * sizeof(T),
                                static_cast<cuuint64_t>(depth_stride) * sizeof(T)};
  const cuuint32_t box[3] = {128 / sizeof(T), static_cast<cuuint32_t>(box_rows), 1}, step[3] = {1, 1, 1};
  CUtensorMap map{};
  const CUresult status = tensor_map_encoder()(&map, kType, 3, const_cast<T*>(data), size, stride, box, step,
                                               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  SWITCHYARD_ASSERT(status == CUDA_SUCCESS, "a product was given a tensor that no map can describe");
  return map;
}

// The same of a contiguous tensor.
template <class T>
CUtensorMap tensor_map(const T* data, std::int64_t columns, std::int64_t rows, std::int64_t depth, int box_rows) {
  return strided_tensor_map(data, columns, rows, depth, columns, columns * rows, box_rows);
}

}  // namespace switchyard::kernels
