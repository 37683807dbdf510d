// instructions.cuh - the machine's instructions by name; put before every .cu file when it is compiled.
//
// Nothing else holds assembly, so that the tests can run the .cu files on a CPU with instructions of their own.
// Compiled with HALF 0 bfloat16 | 1 float16 (the type of pairs), NT (eights of tokens of a wgmma; 0: none).

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;
#define INLINE __device__ __forceinline__

#if HALF
#define PAIR "f16x2"
#define TYPE "f16"
#else
#define PAIR "bf16x2"
#define TYPE "bf16"
#endif

// ---- bits and pairs of halves

INLINE u32 dot_bytes(u32 word, u32 sum) {                    // sum + the four bytes of a word
    asm("dp4a.u32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(word), "r"(0x01010101u));
    return sum;
}

INLINE u32 and_or(u32 a, u32 mask, u32 b) {                  // (a & mask) | b in one instruction
    u32 v;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(v) : "r"(a), "r"(mask), "r"(b));
    return v;
}
INLINE u32 and_xor(u32 a, u32 mask, u32 b) {                 // (a & mask) ^ b
    u32 v;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(v) : "r"(a), "r"(mask), "r"(b));
    return v;
}
INLINE u32 sub2(u32 a, u32 b) {
    u32 v;
    asm("sub.rn." PAIR " %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}
INLINE u32 mul2(u32 a, u32 b) {
    u32 v;
    asm("mul.rn." PAIR " %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}
INLINE u32 fma2(u32 a, u32 b, u32 c) {
    u32 v;
    asm("fma.rn." PAIR " %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
    return v;
}
INLINE u16 rounded(float v) {
    u16 h;
    asm("cvt.rn." TYPE ".f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}

// ---- shared memory, by its 32-bit addresses

INLINE u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
INLINE u32 read4(u32 at) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}
INLINE uint2 read8(u32 at) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
    return v;
}
INLINE uint4 read16(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
}
INLINE void write4(u32 at, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory"); }

// ---- copies from global to shared memory that run by themselves; they end in the order of their groups

INLINE u64 streamed() {                                      // leave the cache soon: read once
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
INLINE void copy16(u32 to, const u8* from, u64 policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "l"(policy) : "memory");
}
INLINE void copy8(u32 to, const u8* from, u64 policy) {
    asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "l"(policy) : "memory");
}
INLINE void copy16_or_zeros(u32 to, const u8* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
INLINE void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
INLINE void wait_for_all_groups_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
INLINE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
INLINE void show_to_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }  // what this thread wrote

// ---- between kernels, and between the blocks of a cluster (along y)

INLINE void let_the_next_kernel_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
INLINE void wait_for_the_kernels_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
INLINE void meet_the_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
INLINE float read_of_block(const float* here, int block) {   // the same place in another block's shared memory
    u32 there;
    float v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address(here)), "r"(block));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(there) : "memory");
    return v;
}

// ---- products: a 16 x 16 of a warp's rows by columns, 8 tokens; fragments as PTX defines them

INLINE void load_matrices(u32 (&b)[4], u32 at) {             // four 8 x 8 matrices; lanes 8m .. 8m + 7 give the rows of matrix m
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(at) : "memory");
}
INLINE void multiply(float (&d)[4], const u32* a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#if NT
// Of four warps together, 64 rows: d (+)= a times 16 columns of NT * 8 tokens in shared memory at `x`: rows of 128 bytes,
// swizzled by 128 bytes. Runs by itself: a and d must not be touched before wide_wait. more: add to d.
INLINE void wide_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
INLINE void wide_wait() { asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory"); }

#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." TYPE "." TYPE " "
#define D4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define A4 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more)
INLINE void wide_multiply(float (&d)[NT][4], const u32* a, u32 x, int more) {
    const u64 b = (u64)((x & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
#if NT == 1
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %9, 0; " WGMMA(8) "{%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, p, 1, 1, 0; }" : D4(0) : A4);
#elif NT == 2
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %13, 0; " WGMMA(16) "{%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, p, 1, 1, 0; }"
                 : D4(0), D4(1) : A4);
#elif NT == 4
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %21, 0; " WGMMA(32)
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, p, 1, 1, 0; }"
                 : D4(0), D4(1), D4(2), D4(3) : A4);
#elif NT == 8
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0; " WGMMA(64)
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
                 "%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, 0; }"
                 : D4(0), D4(1), D4(2), D4(3), D4(4), D4(5), D4(6), D4(7) : A4);
#elif NT == 16
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %69, 0; " WGMMA(128)
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
                 "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,"
                 "%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, p, 1, 1, 0; }"
                 : D4(0), D4(1), D4(2), D4(3), D4(4), D4(5), D4(6), D4(7), D4(8), D4(9), D4(10), D4(11), D4(12), D4(13), D4(14), D4(15) : A4);
#endif
}
#endif
