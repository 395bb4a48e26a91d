// kernels/hopper.cuh: the sm_90a instructions that products are made of: barriers in shared memory, bulk tensor copies,
// matrix multiplication by warpgroups. Addresses in shared memory are 32-bit numbers.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace switchyard::kernels::hopper {

__device__ __forceinline__ std::uint32_t smem_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// --- mbarriers: a phase ends when all arrivals and all announced bytes have come ---

__device__ __forceinline__ void barrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Until the phase of this parity has ended.
__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::
          "r"(barrier),
      "r"(parity)
      : "memory");
}
// One arrival that also announces bytes to come.
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// At the same barrier of another block of the cluster. The plain form: .release.cluster would cost a membar, a third of
// a product's speed, and what it would order was only read.
__device__ __forceinline__ void barrier_arrive_at(std::uint32_t barrier, int block) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, "
      "[remote];\n}" ::"r"(barrier),
      "r"(block)
      : "memory");
}
// A word, or four, and its announced bytes into another block of the cluster.
__device__ __forceinline__ void store_at(std::uint32_t word, int value, std::uint32_t barrier, int block) {
  asm volatile(
      "{\n.reg .b32 to, bar;\nmapa.shared::cluster.u32 to, %0, %3;\nmapa.shared::cluster.u32 bar, %2, %3;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.s32 [to], %1, [bar];\n}" ::"r"(word),
      "r"(value), "r"(barrier), "r"(block)
      : "memory");
}
__device__ __forceinline__ void store_at(std::uint32_t words, int4 value, std::uint32_t barrier, int block) {
  asm volatile(
      "{\n.reg .b32 to, bar;\nmapa.shared::cluster.u32 to, %0, %6;\nmapa.shared::cluster.u32 bar, %5, %6;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [to], {%1, %2, %3, %4}, [bar];\n}" ::"r"(
          words),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier), "r"(block)
      : "memory");
}
__device__ __forceinline__ void store_word(std::uint32_t word, int value) {
  asm volatile("st.volatile.shared.s32 [%0], %1;" ::"r"(word), "r"(value) : "memory");
}
__device__ __forceinline__ void load_word(std::uint32_t word, int& value) {
  asm volatile("ld.volatile.shared.s32 %0, [%1];" : "=r"(value) : "r"(word) : "memory");
}
__device__ __forceinline__ void load_word(std::uint32_t words, int4& value) {
  asm volatile("ld.volatile.shared.v4.s32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(words)
               : "memory");
}
__device__ __forceinline__ void load_words(std::uint32_t words, uint2& value) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(words) : "memory");
}

// --- copies ---

// A box of a tensor map into shared memory; with kBlocks > 1 into the same place of every block of the cluster.
template <int kBlocks>
__device__ __forceinline__ void load_box(std::uint32_t to, const CUtensorMap* map, std::uint32_t barrier, int c0,
                                         int c1, int c2) {
  if constexpr (kBlocks == 1)
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
            "r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
        "{%3, "
        "%4, %5}], [%2], %6;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "h"(static_cast<std::uint16_t>((1 << kBlocks) - 1))
        : "memory");
}
// Bytes that lie in a row, a multiple of 16.
__device__ __forceinline__ void load_bytes(std::uint32_t to, const void* from, unsigned bytes, std::uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
// Bytes that lie in a row, a multiple of 16, into L2.
__device__ __forceinline__ void fetch_bytes(const void* from, unsigned bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
// Shared memory into a box of a tensor map, clipped at the tensor's edges; the fp32 form adds.
__device__ __forceinline__ void store_box(const CUtensorMap* map, std::uint32_t from, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(from),
               "r"(c0), "r"(c1), "r"(c2)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
__device__ __forceinline__ void add_box(const CUtensorMap* map, std::uint32_t from, int c0, int c1, int c2) {
  asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(from), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until at most kPending of this thread's stores still read shared memory; or until all are complete.
template <int kPending>
__device__ __forceinline__ void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
__device__ __forceinline__ void wait_stores_complete() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// 16 bytes, or zeros where `row`, the row that they are of, is negative.
__device__ __forceinline__ void copy_16(std::uint32_t to, const void* from, int row) {
  asm volatile(
      "{\n.reg .pred absent;\nsetp.lt.s32 absent, %2, 0;\ncp.async.cg.shared.global [%0], [%1], 16, absent;\n}" ::"r"(
          to),
      "l"(from), "r"(row)
      : "memory");
}
// Arrives when this thread's copies so far have landed.
__device__ __forceinline__ void copies_arrive(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// --- order and roles ---

// What threads wrote to shared memory becomes visible to copies and products, and the other way round.
__device__ __forceinline__ void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The same of all memory: after this, copies see what was written elsewhere and is known to this thread.
__device__ __forceinline__ void async_proxy_fence_all() { asm volatile("fence.proxy.async;" ::: "memory"); }
// Numbers by which multiprocessors tell one another what is done: what came before the addition is seen after the load.
__device__ __forceinline__ void add_release(int* to, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ int load_acquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ int block_in_cluster() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// One of the block's named barriers, for a warpgroup of 128 threads.
__device__ __forceinline__ void warpgroup_sync(int name) { asm volatile("bar.sync %0, 128;" ::"r"(name) : "memory"); }
template <int kRegisters>
__device__ __forceinline__ void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// --- 16x16 bf16 tiles between registers and shared memory, a row address a lane ---

__device__ __forceinline__ void load_matrices(std::uint32_t address, std::uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void store_matrices(std::uint32_t address, const std::uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}

// --- operands of wgmma, stored with the 128-byte swizzle ---

// K-major: rows of 128 bytes (64 bf16 of K), 8-row groups 1024 bytes apart. A step of 16 in K is +2.
__device__ __forceinline__ std::uint64_t operand_k_major(std::uint32_t smem) {
  return static_cast<std::uint64_t>((smem & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}
// M- or N-major: blocks of 64 columns by 64 rows of K, 8192 bytes apart. A step of 16 in K is +128.
__device__ __forceinline__ std::uint64_t operand_mn_major(std::uint32_t smem) {
  return static_cast<std::uint64_t>((smem & 0x3FFFF) >> 4) | (512ull << 16) | (64ull << 32) | (1ull << 62);
}
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

}  // namespace switchyard::kernels::hopper
