// instructions.cuh - the machine's instructions by name; put before every .cu file when it is compiled.
//
// Nothing else holds assembly, so that the tests can run the .cu files on a CPU with instructions of their own.
// Compiled with HALF 0 bfloat16 | 1 float16 (the type of pairs), NT (eights of tokens of a wgmma; 0: none), ACT 0: products are of
// halves | 1: of int8, summed in int32 | 2: of float8 e4m3; two bytes lie where a half does.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;
#define INLINE __device__ __forceinline__

#ifndef ACT
#define ACT 0
#endif
#if HALF
#define PAIR "f16x2"
#define TYPE "f16"
#else
#define PAIR "bf16x2"
#define TYPE "bf16"
#endif

// ---- bits and pairs of halves

INLINE u32 dot_bytes(u32 word, u32 by, u32 sum) {            // sum + the products of the bytes of two words
    asm("dp4a.u32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(word), "r"(by));
    return sum;
}

INLINE u32 shifted(u32 low, u32 high, int by) {              // 32 bits of the 64, from bit `by` < 32 on
    u32 v;
    asm("shf.r.wrap.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(low), "r"(high), "r"(by));
    return v;
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
INLINE u32 chosen(u32 mask, u32 a, u32 b) {                  // bits of a where mask has them, else of b
    u32 v;
    asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(v) : "r"(mask), "r"(a), "r"(b));
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
INLINE u32 fma2_of_low(u32 a, u32 b, u32 c) {                // the lower half of a for both
    u32 v;
    asm("{ .reg .b16 l, h; .reg .b32 d; mov.b32 {l, h}, %1; mov.b32 d, {l, l}; fma.rn." PAIR " %0, d, %2, %3; }"
        : "=r"(v) : "r"(a), "r"(b), "r"(c));
    return v;
}
INLINE u32 min2(u32 a, u32 b) {                              // of 16-bit numbers without sign (Hopper)
    u32 v;
    asm("min.u16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}
INLINE u32 bytes(u32 a, u32 b, u32 choice) {                 // four of the eight bytes of a (0 .. 3) and b (4 .. 7), by hex digits;
                                                             // + 8: eight times its top bit
    u32 v;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(choice));
    return v;
}
INLINE float half_value(u32 h) {                             // of a float16
    float v;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(v) : "r"(h));
    return v;
}
INLINE u32 pair_of_halves(float low, float high) {
    u32 v;
    asm("cvt.rn." PAIR ".f32 %0, %2, %1;" : "=r"(v) : "f"(low), "f"(high));
    return v;
}
INLINE float divided(float a, float b) {                     // rounded correctly
    float v;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
    return v;
}
INLINE float reciprocal(float a) {                           // to the last bit or the one before it; 0 beyond 2^126
    float v;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(a));
    return v;
}
INLINE u32 int8_of(float v) {                                // the nearest, ties to even, within the range
    u32 byte;
    asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(byte) : "f"(v));
    return byte & 255;
}
INLINE u32 e4m3_of(float v) {
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.f), "f"(v));
    return pair & 255;
}
INLINE u16 rounded_bfloat(float v) {
    u16 h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}
INLINE float power_of_2(float v) {
    float p;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(v));
    return p;
}
INLINE u16 rounded(float v) {
    u16 h;
    asm("cvt.rn." TYPE ".f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}

// ---- between the lanes of a warp

INLINE float of_lane(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
INLINE u32 kept(u32 v) { return __shfl_sync(0xffffffffu, v, threadIdx.x & 31); }         // v, which no compiler computes again
INLINE u32 of_other(u32 v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }   // of lane ^ mask
INLINE int warp_index() { return __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); }        // one that ptxas knows to be the same in all lanes
INLINE bool elected() {                                      // one lane; what it alone does, ptxas need not do for each lane in turn
    u32 chosen;
    asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.b32 %0, 1, 0, p; }" : "=r"(chosen));
    return chosen;
}
INLINE bool any_lane(bool v) { return __any_sync(0xffffffffu, v); }
INLINE u32 transposed(u32 v) {                               // an 8 x 8 of halves, two of a row in each lane
    u32 t;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(v));
    return t;
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
// two 8 x 8 matrices of halves, transposed: of their rows, pairs in a lane as of a product's sums, come columns of 16 bytes, whose
// places lanes 8m .. 8m + 7 give for matrix m
INLINE void write_transposed(u32 at, u32 first, u32 second) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(at), "r"(first), "r"(second) : "memory");
}

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
INLINE void copy16_if(u32 to, const u8* from, u64 policy, bool wanted) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %3, 0; @p cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2; }" ::"r"(to), "l"(from),
                 "l"(policy), "r"((int)wanted)
                 : "memory");
}
INLINE void copy16_or_zeros(u32 to, const u8* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
INLINE void copy16_or_zeros(u32 to, const u8* from, bool inside, u64 policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0), "l"(policy)
                 : "memory");
}
INLINE void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
INLINE void wait_for_all_groups_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
INLINE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
INLINE void show_to_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }  // what this thread wrote

// ---- bulk copies: one instruction, bytes that lie together; a barrier in shared memory counts them (Hopper)

INLINE void begin_barrier(u32 at, u32 arrivals = 1) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\nfence.mbarrier_init.release.cluster;" ::"r"(at), "r"(arrivals) : "memory");
}
INLINE void expect_bytes(u32 barrier, u32 bytes) {           // the barrier's next phase ends when so many have come
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
INLINE void copy_many(u32 to, const u8* from, u32 bytes, u32 barrier) {  // addresses and bytes are multiples of 16
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
                 "r"(barrier)
                 : "memory");
}
struct __align__(64) TensorMap { u64 words[16]; };          // made by the driver
INLINE void fetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }
// a box of the matrix of `map`, from (column, row) on, to the same place of the first `blocks` blocks of the cluster and their barriers
INLINE void copy_box(u32 to, const TensorMap& map, int column, int row, u32 barrier, int blocks) {
    if (blocks == 1)
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                     "l"(&map), "r"(column), "r"(row), "r"(barrier)
                     : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], "
                     "[%4], %5;" ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"((u16)((1 << blocks) - 1))
                     : "memory");
}
// The same, to this block, of a matrix whose rows are seen as sixteens of four fours: of every four rows two, from `pair` on, and of as many
// sixteens as a box has; a sixteen's four pairs make eight rows there.
INLINE void copy_pairs(u32 to, const TensorMap& map, int column, int pair, int sixteen, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
                 "l"(&map), "r"(column), "r"(pair), "r"(0), "r"(sixteen), "r"(barrier)
                 : "memory");
}
INLINE void arrive_at(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
INLINE void arrive_after_copies(u32 barrier) {               // once copy16 and the like of this thread are there
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
INLINE void arrive_in_cluster(u32 barrier, int block) {      // at the same barrier of another block
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(
                     barrier), "r"(block)
                 : "memory");
}
// into shared memory of another block, whose barrier counts the bytes
INLINE void send16(u32 to, uint4 v, u32 barrier, int block) {
    asm volatile("{ .reg .b32 there, told; mapa.shared::cluster.u32 there, %0, %6; mapa.shared::cluster.u32 told, %5, %6;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [there], {%1, %2, %3, %4}, [told]; }" ::"r"(to), "r"(v.x),
                 "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier), "r"(block)
                 : "memory");
}
INLINE void meet_in_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
INLINE void wait_for_the_cluster() {                         // all threads: to this point they come together, whatever they wrote
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
INLINE void wait_for_phase(u32 barrier, u32 parity) {        // for the end of the phase; phases are 0, 1, 0, ...
    asm volatile("{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra done; bra again; done: }" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

// ---- between kernels, and between blocks

INLINE void let_the_next_kernel_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
INLINE void wait_for_the_kernels_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
INLINE float read_far(const float* at) {                     // what another block may have written
    float v;
    asm volatile("ld.relaxed.gpu.f32 %0, [%1];" : "=f"(v) : "l"(at) : "memory");
    return v;
}
INLINE float4 read16_far(const float* at) {
    float4 v;
    asm volatile("ld.relaxed.gpu.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(at) : "memory");
    return v;
}
// Threads of a block that meet at barrier `id`, 1 .. 15; others do not come.
INLINE void meet_some(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// Whether this block is the last of `number` that come here; then it sees what the others wrote before. count: 0 before and after.
// SOME: only the first so many threads of the block come, and meet at barrier 15.
template <int SOME = 0>
INLINE bool last_of(int* count, int number) {
    __shared__ int came;
    const auto meet = [] {
        if (SOME) meet_some(15, SOME);
        else __syncthreads();
    };
    __threadfence();
    meet();
    if (threadIdx.x == 0) came = atomicAdd(count, 1);
    meet();
    if (came != number - 1) return false;
    __threadfence();
    if (threadIdx.x == 0) *count = 0;
    return true;
}

// ---- products: a 16 x 16 of a warp's rows by columns, 8 tokens; fragments as PTX defines them

INLINE void load_matrices(u32 (&b)[4], u32 at) {             // four 8 x 8 matrices; lanes 8m .. 8m + 7 give the rows of matrix m
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(at) : "memory");
}
#if ACT == 1
typedef int Sum;
#define MMA "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" #n "k32.s32.s8.s8 "
#define WGMMA_END ", p; }"
#define SUM "+r"
#elif ACT == 2
typedef float Sum;
#define MMA "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 "
#define WGMMA_END ", p, 1, 1; }"
#define SUM "+f"
#else
typedef float Sum;
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32"
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." TYPE "." TYPE " "
#define WGMMA_END ", p, 1, 1, 0; }"
#define SUM "+f"
#endif
INLINE void multiply(Sum (&d)[4], const u32* a, u32 b0, u32 b1) {
    asm(MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : SUM(d[0]), SUM(d[1]), SUM(d[2]), SUM(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d[i] = start + the sum of the four bytes of a[i], by a product that multiplies them with ones: column 2c of the right operand takes
// bytes 4c .. 4c + 3 of a row, column 2c + 1 those 16 further on, so that a lane gets what it gave. ones: what `ones_of` the lane says
struct Ones { u32 low, high; };
INLINE Ones ones_of(int lane) {
    const u32 v = lane % 4 == lane / 8 ? 0x01010101u : 0;
    return lane / 4 % 2 ? Ones{0, v} : Ones{v, 0};
}
INLINE void sums_of_bytes(u32 (&d)[4], const u32* a, Ones ones, u32 start) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "r"(ones.low), "r"(ones.high), "r"(start));
}

#if NT
// Of four warps together, 64 rows: d (+)= a times 16 columns of NT * 8 tokens in shared memory: rows of 128 bytes,
// swizzled by 128 bytes; x16: its address / 16. Runs by itself: a and d must not be touched before wide_wait. more: add to d.
INLINE void wide_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
INLINE void wide_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
INLINE void wide_wait_for_all_but() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// all threads of four warps together: how many registers they have from now on
template <int N>
INLINE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
INLINE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
INLINE void wide_wait() { wide_end(), wide_wait_for_all_but<0>(); }

#define D4(i) SUM(d[i][0]), SUM(d[i][1]), SUM(d[i][2]), SUM(d[i][3])
#define D_8 D4(0)
#define R_8 "%0,%1,%2,%3"
#define D_16 D_8, D4(1)
#define R_16 R_8 ",%4,%5,%6,%7"
#define D_32 D_16, D4(2), D4(3)
#define R_32 R_16 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define D_64 D_32, D4(4), D4(5), D4(6), D4(7)
#define R_64 R_32 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define D_112 D_64, D4(8), D4(9), D4(10), D4(11), D4(12), D4(13)
#define R_112 R_64 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55"
#define D_128 D_64, D4(8), D4(9), D4(10), D4(11), D4(12), D4(13), D4(14), D4(15)
#define R_128 R_64 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define D_256 D_128, D4(16), D4(17), D4(18), D4(19), D4(20), D4(21), D4(22), D4(23), D4(24), D4(25), D4(26), D4(27), D4(28), D4(29), D4(30), D4(31)
#define R_256 R_128 \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95" \
    ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define WIDE_PRODUCT(n, sums, a, b, more) "{ .reg .pred p; setp.ne.b32 p, " more ", 0; " WGMMA(n) "{" sums "}, " a ", " b WGMMA_END
// rows of 128 bytes from address x16 * 16 on, swizzled by 128 bytes, as wgmma is told of them
INLINE u64 swizzled_rows(u32 x16) { return (u64)(x16 + (1 << 16)) | (u64)(1024 >> 4) << 32 | (u64)1 << 62; }

#define A4 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(swizzled_rows(x16)), "r"(more)
INLINE void wide_multiply(Sum (&d)[NT][4], const u32* a, u32 x16, int more) {
#if NT == 1
    asm volatile(WIDE_PRODUCT(8, R_8, "{%4,%5,%6,%7}", "%8", "%9") : D_8 : A4);
#elif NT == 2
    asm volatile(WIDE_PRODUCT(16, R_16, "{%8,%9,%10,%11}", "%12", "%13") : D_16 : A4);
#elif NT == 4
    asm volatile(WIDE_PRODUCT(32, R_32, "{%16,%17,%18,%19}", "%20", "%21") : D_32 : A4);
#elif NT == 8
    asm volatile(WIDE_PRODUCT(64, R_64, "{%32,%33,%34,%35}", "%36", "%37") : D_64 : A4);
#elif NT == 16
    asm volatile(WIDE_PRODUCT(128, R_128, "{%64,%65,%66,%67}", "%68", "%69") : D_128 : A4);
#elif NT == 32
    asm volatile(WIDE_PRODUCT(256, R_256, "{%128,%129,%130,%131}", "%132", "%133") : D_256 : A4);
#endif
}
// reads of d stay behind this: neither compiler may move them above the wait, which names no sum
template <int EIGHTS>
INLINE void wide_take(Sum (&d)[EIGHTS][4]) {
#pragma unroll
    for (int i = 0; i < EIGHTS; i++) asm volatile("" : D4(i)::"memory");
}
#if ACT
// The same with 64 rows of bytes in shared memory, from address a16 * 16 on, as the left operand, and as many eights as d has.
#define WIDE_ROWS(eights, n, a, b, more_) \
    INLINE void wide_multiply_rows(Sum (&d)[eights][4], u32 a16, u32 x16, int more) { \
        asm volatile(WIDE_PRODUCT(n, R_##n, a, b, more_) : D_##n : "l"(swizzled_rows(a16)), "l"(swizzled_rows(x16)), "r"(more)); \
    }
WIDE_ROWS(4, 32, "%16", "%17", "%18")
WIDE_ROWS(8, 64, "%32", "%33", "%34")
WIDE_ROWS(14, 112, "%56", "%57", "%58")
WIDE_ROWS(16, 128, "%64", "%65", "%66")
WIDE_ROWS(32, 256, "%128", "%129", "%130")
#endif
#endif
