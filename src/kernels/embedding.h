// kernels/embedding.h: table look-up and the scatter of its gradient.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// out[t] = table[token[t]]
template <class T>
struct Embedding {
  const T* table;             // [V, D]
  const std::int64_t* token;  // [T]
  T* out;                     // [T, D]
  std::int64_t tokens;
  int width;  // a multiple of 8 on CUDA
};

// d_table[token[t]] += d_out[t], in fp32. Positions are read in the order of their tokens: a run of equal ones is
// summed in order, in pieces of 64 positions that are added in order, so the result is bitwise repeatable.
template <class T>
struct EmbeddingBackward {
  const T* d_out;             // [T, D]
  const std::int64_t* token;  // [T]
  const std::int64_t* order;  // [T] positions sorted by token, stable
  float* d_table;             // [V, D], added to
  float* scratch;             // embedding_scratch(tokens, width) floats, contents undefined
  std::int64_t tokens;
  int width;  // a multiple of 8
};
std::int64_t embedding_scratch(std::int64_t tokens, int width);

template <class T>
void embedding(const Embedding<T>&, Stream);  // bf16, float
template <class T>
void embedding_backward(const EmbeddingBackward<T>&, Stream);  // bf16, float

}  // namespace switchyard::kernels
