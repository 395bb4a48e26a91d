// What this machine's cores can do: the yardstick of MFU on a CPU.
#pragma once

namespace switchyard {

// Largest rate of several 1024^3 fp32 products with the threads torch is set to, in TFLOP/s. Takes about 0.2 s.
double measure_cpu_gemm_tflops();

}  // namespace switchyard
