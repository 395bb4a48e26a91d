// Keys and values of the tokens generated so far, one pair a layer.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace switchyard {

struct KvCache {
  struct LayerCache {
    at::Tensor key, value;  // [B, KV, capacity, C]
  };
  std::vector<LayerCache> layers;
  std::int64_t length = 0;  // tokens held
};

}  // namespace switchyard
