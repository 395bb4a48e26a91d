// kernels/muon_rates.cuh: Muon's update of a weight (kernels/muon.h: MuonApply).
#pragma once

#include "kernels/muon.h"

namespace switchyard::kernels {

struct MuonRates {
  float lr = 0, shrink = 0;
  bool cautious = false;

  MuonRates() = default;
  __device__ explicit MuonRates(const MuonApply& a)
      : lr(a.lr * *a.schedule), shrink(a.shrink * *a.shrink_schedule * *a.schedule), cautious(a.cautious) {}
  __device__ float updated(float weight, float direction) const {
    const bool shrinks = !cautious || direction * weight >= 0.0f;
    return weight - fmaf(shrinks ? shrink : 0.0f, weight, lr * direction);
  }
};

}  // namespace switchyard::kernels
