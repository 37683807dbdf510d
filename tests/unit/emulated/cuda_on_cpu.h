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
#include <memory>
#include <utility>
#include <vector>

typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;
typedef unsigned long long u64;
struct uint2 { u32 x, y; };
struct uint4 { u32 x, y, z, w; };
struct dim3 { int x, y, z; };
#define INLINE inline
#define __device__
#define __host__
#define __global__
#define __launch_bounds__(n)
using std::max;
using std::min;

constexpr int SHARED_BYTES = 227 << 10, STACK_BYTES = 256 << 10;

struct Barrier {
    int size = 0, arrived = 0;
    long generation = 0;
};
struct Copy { u32 to; const u8* from; int bytes; bool inside; };
struct Wide { float (*d)[4]; float old[64][4]; u32 a[4]; u32 x; int more; };
struct Warp { Barrier barrier; u32 words[32][8]; };
struct Block { std::vector<u8> memory; Barrier barrier; std::vector<Warp> warps; };
struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    dim3 index, block_index;
    Block* block;
    bool finished = false;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
    std::vector<Wide> products;
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
static Warp& warp_of() { return current->block->warps[current->index.x / 32]; }
static void __syncthreads() { meet(current->block->barrier); }
static void __syncwarp() { meet(warp_of().barrier); }
static void meet_the_cluster() { meet(cluster_barrier); }
static float read_of_block(const float* here, int block) {
    float v;
    memcpy(&v, (*cluster)[block].memory.data() + ((const u8*)here - block_memory()), 4);
    return v;
}
static void let_the_next_kernel_start() {}
static void wait_for_the_kernels_before() {}

// ---- bits and pairs of halves
static float __uint_as_float(u32 v) { float f; memcpy(&f, &v, 4); return f; }
static u32 __float_as_uint(float f) { u32 v; memcpy(&v, &f, 4); return v; }
static void atomicMin(u64* where, u64 value) { if (value < *where) *where = value; }
static u32 dot_bytes(u32 word, u32 sum) { return sum + (word & 255) + (word >> 8 & 255) + (word >> 16 & 255) + (word >> 24); }
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
static u32 and_or(u32 a, u32 mask, u32 b) { return (a & mask) | b; }
static u32 and_xor(u32 a, u32 mask, u32 b) { return (a & mask) ^ b; }
static u32 sub2(u32 a, u32 b) { return each(a, b, [](float x, float y) { return x - y; }); }
static u32 mul2(u32 a, u32 b) { return each(a, b, [](float x, float y) { return x * y; }); }
static u32 fma2(u32 a, u32 b, u32 c) {
    const u32 low = rounded(to_float(a & 0xffff) * to_float(b & 0xffff) + to_float(c & 0xffff));
    return low | (u32)rounded(to_float(a >> 16) * to_float(b >> 16) + to_float(c >> 16)) << 16;
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
static void copy8(u32 to, const u8* from, u64) { copy({to, from, 8, true}); }
static void copy16_or_zeros(u32 to, const u8* from, bool inside) { copy({to, from, 16, inside}); }
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

// ---- products
static void load_matrices(u32 (&b)[4], u32 a) {
    Warp& w = warp_of();
    const int lane = lane_of();
    w.words[lane][0] = a;
    meet(w.barrier);
    for (int m = 0; m < 4; m++) memcpy(&b[m], at_address(w.words[8 * m + lane / 4][0], 16) + lane % 4 * 4, 4);
    meet(w.barrier);
}
// d += the rows of this lane times x, x(k, n) the right operand; a is exchanged within the warp
template <class X>
static void rows_times(float (*d)[4], int eights, const u32* a, X x) {
    Warp& w = warp_of();
    const int lane = lane_of(), g = lane / 4, c = lane % 4;
    memcpy(w.words[lane], a, 16);
    meet(w.barrier);
    for (int nt = 0; nt < eights; nt++)
        for (int j = 0; j < 4; j++) {
            double sum = d[nt][j];
            for (int k = 0; k < 16; k++) {
                const u32 pair = w.words[g * 4 + k % 8 / 2][j / 2 + k / 8 * 2];
                sum += (double)to_float(k % 2 ? pair >> 16 : pair & 0xffff) * x(k, nt * 8 + 2 * c + j % 2);
            }
            d[nt][j] = (float)sum;
        }
    meet(w.barrier);
}
static void multiply(float (&d)[4], const u32* a, u32 b0, u32 b1) {
    Warp& w = warp_of();
    const int lane = lane_of();
    w.words[lane][4] = b0, w.words[lane][5] = b1;
    meet(w.barrier);
    rows_times(&d, 1, a, [&](int k, int n) {
        const u32 pair = w.words[n % 8 * 4 + k % 8 / 2][4 + k / 8];
        return (double)to_float(k % 2 ? pair >> 16 : pair & 0xffff);
    });
}
#if NT
static void run_wide(Wide& p) {
    for (int i = 0; i < NT; i++)
        for (int j = 0; j < 4; j++) p.d[i][j] = p.more ? p.old[i][j] : 0.f;
    rows_times(p.d, NT, p.a, [&](int k, int n) {
        const u32 there = p.x + n / 8 * 1024 + n % 8 * 128 + k * 2;
        return (double)to_float(read_as<u16>(there ^ (there >> 7 & 7) << 4));
    });
}
static void wide_begin() {}
static void wide_multiply(float (&d)[NT][4], const u32* a, u32 x, int more) {
    if (x % 32) fprintf(stderr, "wide operand at %u\n", x), abort();
    Wide p{d, {}, {a[0], a[1], a[2], a[3]}, x, more};
    if (current->products.empty() || eager) memcpy(p.old, d, sizeof(d));
    if (eager) return run_wide(p);
    current->products.push_back(p);
    for (auto& row : d) row[0] = row[1] = row[2] = row[3] = NAN;
}
static void wide_wait() {
    auto products = std::move(current->products);
    current->products.clear();
    for (size_t i = 0; i < products.size(); i++) {
        if (i) memcpy(products[i].old, products[i].d, NT * 16);
        run_wide(products[i]);
    }
}
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
