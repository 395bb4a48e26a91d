// Which linear layers train in fp8, and why the others do not. Decided from names and sizes alone; no torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/config.h"

namespace switchyard {

// One linear layer. A joint projection (q, k, v) or an expert stack is one layer of several logical matrices, which is
// what the report counts: a reader compares it with trainers that keep them apart.
struct LinearLayer {
  std::string name;                 // blocks.3.attn.qkv
  std::int64_t rows = 0, cols = 0;  // of the matrix one GEMM reads: output and input width; one expert of a stack
  int matrices = 1;                 // logical ones
  bool is_router_or_gate = false;   // and INL controllers: these stay in fp32 or bf16 always
};

struct Fp8Decision {
  LinearLayer layer;
  bool converts = false;
  std::string reason;  // why not; empty when it converts
};

struct Fp8Report {
  std::vector<Fp8Decision> decisions;                  // one a layer, in the order given
  int converted = 0, skipped = 0;                      // logical matrices
  std::vector<std::string> warnings;                   // a pattern that matches no layer
  bool converts(const std::string& layer_name) const;  // false for a name that is not listed
};

// A layer converts iff no pattern of precision.fp8_exclude matches its full name, both dims are multiples of
// fp8_min_align, and it is no router, value gate or INL controller. Does not look at precision.mode.
Fp8Report decide_fp8(const std::vector<LinearLayer>& layers, const PrecisionConfig& precision);

// "fp8: 49 converted, 210 skipped", then a line for each run of layers that share a role and a reason; with every_layer
// a line a layer.
std::string fp8_table(const Fp8Report& report, bool every_layer = false);

}  // namespace switchyard
