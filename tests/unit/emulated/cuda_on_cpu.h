// cuda_on_cpu.h - what the .cu files need to run on a CPU: threads as coroutines, and instructions.cuh once more in C++.
//
// Takes the place of instructions.cuh. Every thread of a cluster runs until it must wait for others; a pass in which nobody
// gets on is a deadlock. Copies and wide products happen as late as they may (when they are waited for) or, with EAGER=1, at
// once, and results are NaN until then: a missing wait or a buffer that is reused too early changes the output.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;
typedef unsigned long long u64;
struct uint2 { u32 x, y; };
struct uint4 { u32 x, y, z, w; };
struct float4 { float x, y, z, w; };
struct dim3 { int x, y, z; };
#define INLINE inline
#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __shared__ static
using std::max;
using std::min;

#ifndef ACT
#define ACT 0
#endif
#if ACT == 1
typedef int Sum;
#else
typedef float Sum;
#endif
constexpr int SHARED_BYTES = 227 << 10, STACK_BYTES = 256 << 10;

struct Barrier {
    int size = 0, arrived = 0;
    long generation = 0;
};
struct Copy { u32 to; const u8* from; int bytes; bool inside; };
struct Wide { Sum (*d)[4]; Sum old[64][4]; u32 a[4]; u32 x; int more; u32 rows; };   // rows: where they lie in shared memory, if not in a
constexpr u32 IN_REGISTERS = ~0u;
struct Warp { Barrier barrier; u32 words[32][8]; };
struct Phase { int arrivals, left, bytes, number; };
struct Block { std::vector<u8> memory; Barrier barrier, some[16]; std::vector<Warp> warps; std::map<u32, Phase> phases; };
struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    dim3 index, block_index;
    Block* block;
    bool finished = false;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
    std::vector<Wide> products;
    std::vector<size_t> ends;                                // of groups of products
};
static Thread* current;
static std::vector<Block>* cluster;
static Barrier cluster_barrier;
static ucontext_t scheduler;
static dim3 grid_size;
static long progress;
static bool eager;
#define threadIdx (current->index)
#define blockIdx (current->block_index)
#define gridDim grid_size

static u8* block_memory() { return current->block->memory.data(); }

static void meet(Barrier& b) {
    const long mine = b.generation;
    if (++b.arrived == b.size) {
        b.arrived = 0, b.generation++, progress++;
        return;
    }
    while (b.generation == mine) swapcontext(&current->context, &scheduler);
}
static int lane_of() { return current->index.x % 32; }
static int warp_index() { return current->index.x / 32; }
static bool elected() { return lane_of() == 0; }
static Warp& warp_of() { return current->block->warps[current->index.x / 32]; }
static void __syncthreads() { meet(current->block->barrier); }
static void meet_some(int id, int threads) {
    Barrier& b = current->block->some[id];
    b.size = threads;
    meet(b);
}
static void __syncwarp() { meet(warp_of().barrier); }
static void let_the_next_kernel_start() {}
static void wait_for_the_kernels_before() {}

// ---- bits and pairs of halves
static float __uint_as_float(u32 v) { float f; memcpy(&f, &v, 4); return f; }
static u32 __float_as_uint(float f) { u32 v; memcpy(&v, &f, 4); return v; }
static void atomicMin(u64* where, u64 value) { if (value < *where) *where = value; }
static u32 dot_bytes(u32 word, u32 by, u32 sum) {
    for (int i = 0; i < 32; i += 8) sum += (word >> i & 255) * (by >> i & 255);
    return sum;
}
static float to_float(u16 h) {
    if (!HALF) return __uint_as_float((u32)h << 16);
    _Float16 f;
    memcpy(&f, &h, 2);
    return (float)f;
}
static u16 rounded(float v) {
    if (HALF) {
        _Float16 f = (_Float16)v;
        u16 h;
        memcpy(&h, &f, 2);
        return h;
    }
    u32 bits;
    memcpy(&bits, &v, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
template <class F>
static u32 each(u32 a, u32 b, F f) {
    return (u32)rounded(f(to_float(a & 0xffff), to_float(b & 0xffff))) | (u32)rounded(f(to_float(a >> 16), to_float(b >> 16))) << 16;
}
static u32 shifted(u32 low, u32 high, int by) { return (u32)(((u64)high << 32 | low) >> by); }
static u32 and_or(u32 a, u32 mask, u32 b) { return (a & mask) | b; }
static u32 and_xor(u32 a, u32 mask, u32 b) { return (a & mask) ^ b; }
static u32 chosen(u32 mask, u32 a, u32 b) { return (mask & a) | (~mask & b); }
static u32 sub2(u32 a, u32 b) { return each(a, b, [](float x, float y) { return x - y; }); }
static u32 mul2(u32 a, u32 b) { return each(a, b, [](float x, float y) { return x * y; }); }
static u32 fma2(u32 a, u32 b, u32 c) {
    const u32 low = rounded(to_float(a & 0xffff) * to_float(b & 0xffff) + to_float(c & 0xffff));
    return low | (u32)rounded(to_float(a >> 16) * to_float(b >> 16) + to_float(c >> 16)) << 16;
}
static u32 fma2_of_low(u32 a, u32 b, u32 c) { return fma2((a & 0xffff) * 0x00010001u, b, c); }
static u32 min2(u32 a, u32 b) { return min(a & 0xffff, b & 0xffff) | min(a >> 16, b >> 16) << 16; }
static u32 bytes(u32 a, u32 b, u32 choice) {
    const u64 all = (u64)b << 32 | a;
    u32 v = 0;
    for (int i = 0; i < 4; i++) {
        const u32 byte = all >> (choice >> (4 * i) & 7) * 8 & 255;
        v |= (choice >> (4 * i) & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
    }
    return v;
}
static float half_value(u32 h) {
    _Float16 f;
    memcpy(&f, &h, 2);
    return (float)f;
}
static u32 pair_of_halves(float low, float high) { return rounded(low) | (u32)rounded(high) << 16; }
static u16 rounded_bfloat(float v) {
    const u32 bits = __float_as_uint(v);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static float divided(float a, float b) { return a / b; }
static float reciprocal(float a) { return 1 / a; }
static u32 int8_of(float v) { return (u32)(int)fmaxf(-128.f, fminf(127.f, nearbyintf(v))) & 255; }
static u32 e4m3_of(float v) {
    const float size = fminf(fabsf(v), 448.f);
    const int exponent = size < ldexpf(1, -6) ? -6 : ilogbf(size);
    const int units = (int)nearbyintf(ldexpf(size, 3 - exponent)); // of 2^(exponent - 3); 16 carries into the exponent
    return (u32)((exponent + 6) * 8 + units) | (v < 0 ? 128 : 0);
}
static float power_of_2(float v) { return exp2f(v); }
static u32 kept(u32 v) { return v; }

// ---- between lanes and blocks
template <class F>
static u32 from_lanes(u32 v, F f) {                          // f sees what every lane gave
    Warp& w = warp_of();
    w.words[lane_of()][0] = v;
    meet(w.barrier);
    v = f(w.words);
    meet(w.barrier);
    return v;
}
static float of_lane(float v, int lane) {
    return __uint_as_float(from_lanes(__float_as_uint(v), [=](u32 (*all)[8]) { return all[lane][0]; }));
}
static u32 of_other(u32 v, int mask) {
    const int lane = lane_of();
    return from_lanes(v, [=](u32 (*all)[8]) { return all[lane ^ mask][0]; });
}
static bool any_lane(bool v) {
    return from_lanes(v, [](u32 (*all)[8]) {
        u32 any = 0;
        for (int i = 0; i < 32; i++) any |= all[i][0];
        return any;
    });
}
static u32 transposed(u32 v) {
    const int row = lane_of() / 4, c = lane_of() % 4;
    return from_lanes(v, [=](u32 (*all)[8]) {
        const u32 low = all[8 * c + row / 2][0], high = all[8 * c + 4 + row / 2][0];
        return row % 2 ? low >> 16 | (high & 0xffff0000u) : (low & 0xffff) | high << 16;
    });
}
static float read_far(const float* at) { return *at; }
static float4 read16_far(const float* at) { return {at[0], at[1], at[2], at[3]}; }
template <int SOME = 0>
static bool last_of(int* count, int number) {
    const auto meet_all = [] { SOME ? meet_some(15, SOME) : __syncthreads(); };
    meet_all();
    const bool last = *count == number - 1;
    meet_all();
    if (threadIdx.x == 0) *count = last ? 0 : *count + 1;
    meet_all();
    return last;
}

// ---- shared memory and copies
static u8* at_address(u32 a, int bytes) {
    if (a % bytes || a + bytes > (u32)SHARED_BYTES) fprintf(stderr, "address %u, %d bytes\n", a, bytes), abort();
    return block_memory() + a;
}
static u32 address(const void* p) { return (u32)((const u8*)p - block_memory()); }
template <class T>
static T read_as(u32 a) { T v; memcpy(&v, at_address(a, sizeof(T)), sizeof(T)); return v; }
static u32 read4(u32 a) { return read_as<u32>(a); }
static uint2 read8(u32 a) { return read_as<uint2>(a); }
static uint4 read16(u32 a) { return read_as<uint4>(a); }
static void write4(u32 a, u32 v) { memcpy(at_address(a, 4), &v, 4); }
static void write_transposed(u32 a, u32 first, u32 second) {
    Warp& w = warp_of();
    const int lane = lane_of();
    u32* given = w.words[lane];
    given[0] = first, given[1] = second, given[2] = a;
    meet(w.barrier);
    for (int m = 0; m < 2; m++)
        for (int e = 0; e < 2; e++) {
            const u16 half = given[m] >> 16 * e;
            memcpy(at_address(w.words[8 * m + lane % 4 * 2 + e][2], 16) + lane / 4 * 2, &half, 2);
        }
    meet(w.barrier);
}
static u64 streamed() { return 0; }
static void arrive(const Copy& c) {
    if (c.inside) memcpy(at_address(c.to, c.bytes), c.from, c.bytes);
    else memset(at_address(c.to, c.bytes), 0, c.bytes);
}
static void copy(Copy c) {
    if ((uintptr_t)c.from % c.bytes && c.inside) fprintf(stderr, "copy of %d bytes is not aligned\n", c.bytes), abort();
    if (eager) arrive(c);
    else current->open.push_back(c);
}
static void copy16(u32 to, const u8* from, u64) { copy({to, from, 16, true}); }
static void copy16_if(u32 to, const u8* from, u64, bool wanted) {
    if (wanted) copy({to, from, 16, true});
}
static void copy8(u32 to, const u8* from, u64) { copy({to, from, 8, true}); }
static void copy16_or_zeros(u32 to, const u8* from, bool inside, u64 = 0) { copy({to, from, 16, inside}); }
static void end_group() { current->groups.push_back(std::move(current->open)), current->open.clear(); }
static void leave(size_t left) {
    auto& g = current->groups;
    while (g.size() > left) {
        for (auto& c : g.front()) arrive(c);
        g.erase(g.begin());
    }
}
template <int N>
static void wait_for_all_groups_but() { leave(N); }
static void wait_for_copies() {
    leave(0);
    for (auto& c : current->open) arrive(c);
    current->open.clear();
}
static void show_to_wgmma() {}

// barriers that count arrivals and bytes: four words {arrivals of a phase, arrivals left, bytes left, phase} of the block, by address
static void begin_barrier(u32 at, u32 arrivals = 1) {
    at_address(at, 8);
    current->block->phases[at] = {(int)arrivals, (int)arrivals, 0, 0};
}
static void told(Phase& p) {
    if (p.left || p.bytes) return;
    p.left = p.arrivals, p.number++, progress++;
}
static Phase& phase_at(Block& block, u32 at) {
    if (!block.phases.count(at)) fprintf(stderr, "no barrier at %u\n", at), abort();
    return block.phases[at];
}
static void expect_bytes(u32 barrier, u32 bytes) {
    Phase& p = phase_at(*current->block, barrier);
    p.bytes += bytes, p.left--;
    told(p);
}
static void copy_many(u32 to, const u8* from, u32 bytes, u32 barrier) {
    if (to % 16 || (uintptr_t)from % 16 || bytes % 16) fprintf(stderr, "bulk copy: %u <- %p, %u bytes\n", to, from, bytes), abort();
    memcpy(at_address(to + bytes - 16, 16) + 16 - bytes, from, bytes);
    Phase& p = phase_at(*current->block, barrier);
    p.bytes -= bytes;
    told(p);
}
static void wait_for_phase(u32 barrier, u32 parity) {
    Phase& p = phase_at(*current->block, barrier);
    while ((p.number & 1) == (int)parity) swapcontext(&current->context, &scheduler);
    progress++;
}
static void arrive_in_cluster(u32 barrier, int block) {
    Phase& p = phase_at((*cluster)[block], barrier);
    p.left--;
    if (p.left < 0) fprintf(stderr, "barrier %u: too many arrivals\n", barrier), abort();
    told(p);
}
static void arrive_at(u32 barrier) {
    Phase& p = phase_at(*current->block, barrier);
    p.left--;
    if (p.left < 0) fprintf(stderr, "barrier %u: too many arrivals\n", barrier), abort();
    told(p);
}
static void arrive_after_copies(u32 barrier) { wait_for_copies(), arrive_at(barrier); }
static void send16(u32 to, uint4 v, u32 barrier, int block) {
    at_address(to, 16);
    memcpy((*cluster)[block].memory.data() + to, &v, 16);
    Phase& p = phase_at((*cluster)[block], barrier);
    p.bytes -= 16;
    told(p);
}
static void meet_in_cluster() { meet(cluster_barrier); }
static void wait_for_the_cluster() { meet(cluster_barrier); }
struct TensorMap { const u8* from; int rows, columns, box_rows, box_columns; };   // of halves, swizzled by 128 bytes
static void fetch_map(const TensorMap&) {}
// row_at(r): the matrix's row that becomes row r of the box
template <class F>
static void copy_rows(u32 to, const TensorMap& map, int column, u32 barrier, int blocks, F row_at) {
    if (to % 1024 || map.box_columns != 64) fprintf(stderr, "box at %u\n", to), abort();
    for (int b = 0; b < blocks; b++) {
        Block& there = blocks == 1 ? *current->block : (*cluster)[b];
        for (int r = 0; r < map.box_rows; r++)
            for (int c = 0; c < 64; c++) {
                const bool inside = row_at(r) < map.rows && column + c < map.columns;
                const u32 at = to + r * 128 + c * 2;
                u8* place = there.memory.data() + (at ^ (at >> 7 & 7) << 4);
                if (inside) memcpy(place, map.from + ((size_t)row_at(r) * map.columns + column + c) * 2, 2);
                else memset(place, 0, 2);
            }
        Phase& p = phase_at(there, barrier);
        p.bytes -= map.box_rows * 128;
        told(p);
    }
}
static void copy_box(u32 to, const TensorMap& map, int column, int row, u32 barrier, int blocks) {
    copy_rows(to, map, column, barrier, blocks, [=](int r) { return row + r; });
}
static void copy_pairs(u32 to, const TensorMap& map, int column, int pair, int sixteen, u32 barrier) {
    copy_rows(to, map, column, barrier, 1, [=](int r) { return (sixteen + r / 8) * 16 + r / 2 % 4 * 4 + pair + r % 2; });
}

// ---- products
static void load_matrices(u32 (&b)[4], u32 a) {
    Warp& w = warp_of();
    const int lane = lane_of();
    w.words[lane][0] = a;
    meet(w.barrier);
    for (int m = 0; m < 4; m++) memcpy(&b[m], at_address(w.words[8 * m + lane / 4][0], 16) + lane % 4 * 4, 4);
    meet(w.barrier);
}
constexpr int PARTS = ACT ? 4 : 2;                           // numbers of a word
static double number_of(u32 word, int i) {
    if (ACT == 0) return to_float(word >> 16 * i & 0xffff);
    const u32 byte = word >> 8 * i & 255;
    if (ACT == 1) return (int8_t)byte;
    const int exponent = byte >> 3 & 15;
    const double size = exponent ? ldexp(8 + (byte & 7), exponent - 10) : ldexp(byte & 7, -9);
    return byte & 128 ? -size : size;
}
// d += the rows of this lane times x, x(word of a row, n) the words of the right operand; a is exchanged within the warp
template <class X>
static void rows_times(Sum (*d)[4], int eights, const u32* a, X x) {
    Warp& w = warp_of();
    const int lane = lane_of(), g = lane / 4, c = lane % 4;
    memcpy(w.words[lane], a, 16);
    meet(w.barrier);
    for (int nt = 0; nt < eights; nt++)
        for (int j = 0; j < 4; j++) {
            double sum = d[nt][j];
            for (int k = 0; k < 8; k++) {
                const u32 left = w.words[g * 4 + k % 4][j / 2 + k / 4 * 2], right = x(k, nt * 8 + 2 * c + j % 2);
                for (int i = 0; i < PARTS; i++) sum += number_of(left, i) * number_of(right, i);
            }
            d[nt][j] = (Sum)sum;
        }
    meet(w.barrier);
}
static void multiply(Sum (&d)[4], const u32* a, u32 b0, u32 b1) {
    Warp& w = warp_of();
    const int lane = lane_of();
    w.words[lane][4] = b0, w.words[lane][5] = b1;
    meet(w.barrier);
    rows_times(&d, 1, a, [&](int k, int n) { return w.words[n % 8 * 4 + k % 4][4 + k / 4]; });
}
// the product of bytes in full: which sums a lane gets follows from the fragments that PTX defines
struct Ones { u32 low, high; };
static Ones ones_of(int lane) {
    const u32 v = lane % 4 == lane / 8 ? 0x01010101u : 0;
    return lane / 4 % 2 ? Ones{0, v} : Ones{v, 0};
}
static void sums_of_bytes(u32 (&d)[4], const u32* a, Ones ones, u32 start) {
    Warp& w = warp_of();
    const int lane = lane_of();
    const u32 fragment[6] = {a[0], a[2], a[1], a[3], ones.low, ones.high};
    for (int i = 0; i < 6; i++) w.words[lane][i] = fragment[i];
    meet(w.barrier);
    for (int j = 0; j < 4; j++) {
        const int row = lane / 4 + j / 2 * 8, column = lane % 4 * 2 + j % 2;
        d[j] = start;
        for (int k = 0; k < 32; k++) {
            const u32 left = w.words[row % 8 * 4 + k % 16 / 4][row / 8 + k / 16 * 2] >> k % 4 * 8 & 255;
            const u32 right = w.words[column * 4 + k % 16 / 4][4 + k / 16] >> k % 4 * 8 & 255;
            d[j] += left * right;
        }
    }
    meet(w.barrier);
}
#if NT
static u32 swizzled_word(u32 at, int row, int word) {        // of rows of 128 bytes from `at` on
    const u32 there = at + row / 8 * 1024 + row % 8 * 128 + word * 4;
    return read_as<u32>(there ^ (there >> 7 & 7) << 4);
}
static void run_wide(Wide& p) {
    for (int i = 0; i < NT; i++)
        for (int j = 0; j < 4; j++) p.d[i][j] = p.more ? p.old[i][j] : 0;
    const int lane = lane_of(), row = current->index.x / 32 % 4 * 16 + lane / 4;
    for (int i = 0; i < 4 && p.rows != IN_REGISTERS; i++) p.a[i] = swizzled_word(p.rows, row + i % 2 * 8, lane % 4 + i / 2 * 4);
    rows_times(p.d, NT, p.a, [&](int k, int n) { return swizzled_word(p.x, n, k); });
}
static void wide_begin() {}
static void start_wide(Sum (&d)[NT][4], Wide p) {
    if (p.x % 32 || (p.rows != IN_REGISTERS && p.rows % 32)) fprintf(stderr, "wide operands at %u and %u\n", p.x, p.rows), abort();
    if (current->products.empty() || eager) memcpy(p.old, d, sizeof(d));
    if (eager) return run_wide(p);
    current->products.push_back(p);
    for (auto& row : d) row[0] = row[1] = row[2] = row[3] = (Sum)NAN;
}
static void wide_multiply(Sum (&d)[NT][4], const u32* a, u32 x16, int more) {
    start_wide(d, {d, {}, {a[0], a[1], a[2], a[3]}, x16 * 16, more, IN_REGISTERS});
}
static void wide_multiply_rows(Sum (&d)[NT][4], u32 a16, u32 x16, int more) { start_wide(d, {d, {}, {}, x16 * 16, more, a16 * 16}); }
static void wide_take(Sum (&d)[NT][4]) {}
static void wide_end() { current->ends.push_back(current->products.size()); }
template <int N>
static void wide_wait_for_all_but() {                        // the last N groups
    auto& ends = current->ends;
    if (ends.size() <= N) return;
    const size_t number = ends[ends.size() - 1 - N];
    auto& products = current->products;
    for (size_t i = 0; i < number; i++) {
        if (i) memcpy(products[i].old, products[i].d, NT * 16);
        run_wide(products[i]);
    }
    if (number < products.size()) memcpy(products[number].old, products[number].d, NT * 16);
    products.erase(products.begin(), products.begin() + number);
    ends.erase(ends.begin(), ends.end() - N);
    for (auto& end : ends) end -= number;
    if (products.size()) for (int i = 0; i < NT; i++) for (int j = 0; j < 4; j++) products.back().d[i][j] = (Sum)NAN;
}
template <int N>
static void more_registers() {}
template <int N>
static void fewer_registers() {}
static void wide_wait() { wide_end(), wide_wait_for_all_but<0>(); }
#endif

// ---- running a kernel
template <class F>
static F*& body() { static F* f; return f; }
template <class F>
static void enter() {
    (*body<F>())();
    current->finished = true, progress++;
    swapcontext(&current->context, &scheduler);
}
template <class F>
static void run_cluster(int x, int z, int blocks, int threads, F& kernel) {
    std::vector<Block> all(blocks);
    cluster = &all;
    cluster_barrier = {blocks * threads};
    std::vector<Thread> crowd(blocks * threads);
    body<F>() = &kernel;
    for (int b = 0; b < blocks; b++) {
        all[b].memory.assign(SHARED_BYTES, 0xff);
        all[b].barrier.size = threads;
        all[b].warps.resize(threads / 32);
        for (auto& w : all[b].warps) w.barrier.size = 32;
        for (int t = 0; t < threads; t++) {
            Thread& one = crowd[b * threads + t];
            one.index = {t, 0, 0}, one.block_index = {x, b, z}, one.block = &all[b];
            one.stack.reset(new char[STACK_BYTES]);
            getcontext(&one.context);
            one.context.uc_stack.ss_sp = one.stack.get(), one.context.uc_stack.ss_size = STACK_BYTES;
            makecontext(&one.context, (void (*)())enter<F>, 0);
        }
    }
    for (bool busy = true; busy;) {
        busy = false;
        const long before = progress;
        for (auto& one : crowd)
            if (!one.finished) {
                busy = true, current = &one;
                swapcontext(&scheduler, &one.context);
            }
        if (busy && progress == before) fprintf(stderr, "deadlock\n"), abort();
    }
}
template <class F>
static void run(dim3 grid, int blocks, int threads, F kernel) {  // blocks: of a cluster, along y
    grid_size = grid, eager = getenv("EAGER") != nullptr;
    for (int z = 0; z < grid.z; z++)
        for (int x = 0; x < grid.x; x++)
            for (int y = 0; y < grid.y; y += blocks) {
                auto shifted = [&] { current->block_index.y += y, kernel(); };
                run_cluster(x, z, blocks, threads, shifted);
            }
}
