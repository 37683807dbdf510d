// weights.cuh - packed weights in a lane's registers, decoded into left operands of tensor cores; see linear.py for the layout.
//
// Bits are cut out by lop3 into halves "magic + u", and the zero is taken off exactly.
// CODEC: 8 weights of a lane and a 16 x 16 tile are 8 * BITS bits of a trellis' stream, which is a ring over the lanes; a weight is a
// function of the 16 bits that end with its own (lowbit.dtypes._mul1), a half whatever x was. One scale for all.
// LUT: a code is the place of a half in a table of 16, whose lower and upper bytes are looked up by prmt, eight places at once.
// VECTORS: 16 bits are eight columns in a row, two entries of eight halves each: 1 E8P, |a| by the upper byte, signs by the lower
// one, whose lowest bit is the shift; 2 additive, whose second book is held negative. A lane's columns of a unit lie side by side,
// so x comes in another order (vectors.py).
//
// Compiled with: BITS 2|3|4|5|6|8|16, HALF 0 bfloat16 | 1 float16, GROUP units of 32 columns (0: a scale per row), ASYM, SCALED 1: weights
// are scaled, rounded as decoding rounds them; CODEC 0 | 1 (then BITS 2|3|4, HALF 1, GROUP 0), LUT 0 | 1 (then BITS 4, not ASYM),
// VECTORS 0 | 1 | 2 (then BITS 2, HALF 1, GROUP 0, not ASYM), COPIES 1 | 8 (of books: no two lanes meet in a bank),
// OUT 0: results are of the type of x | 1: bfloat16, WIDE 1: products are wgmma.

#ifndef CODEC
#define CODEC 0
#define OUT 0
#endif
#ifndef LUT
#define LUT 0
#endif
#ifndef VECTORS
#define VECTORS 0
#endif
#ifndef COPIES
#define COPIES 1
#endif

constexpr bool ONE_SCALE = CODEC || VECTORS == 1;            // for all weights, beside them
constexpr int ENTRIES = VECTORS ? 2 * 256 : 0;               // of two books, COPIES times

constexpr bool ODD = BITS == 3 || BITS == 5;
constexpr int LOW = ODD ? BITS - 1 : BITS;                   // a lane's words of a chunk: 2 * LOW low ones, and two high ones if ODD
constexpr int LOW_BYTES = LOW * 256;                         // bytes of a chunk of 16 rows x 128 columns
constexpr int HIGH_BYTES = ODD ? 256 : 0;
constexpr int META = ASYM ? 8 : 4;                           // bytes of scales and zeros of two rows
constexpr int META_BYTES = GROUP ? 4 / GROUP * 8 * META : 0; // of one chunk
constexpr int TILE_BYTES = LOW_BYTES + HIGH_BYTES + META_BYTES;
constexpr int UNITS = GROUP ? GROUP : 4;                     // of 32 columns, in a group

constexpr int MANTISSA = HALF ? 10 : 7;                      // bits below the hidden one

// the halves 2^(MANTISSA - at) as a pair: a code put at bit `at` adds itself to them
__host__ __device__ constexpr u32 magic(int at) { return (HALF ? 0x6400u - (at << 10) : 0x4300u - (at << 7)) * 0x00010001u; }
__host__ __device__ constexpr u32 twice(u32 code) { return code * 0x00010001u; }

INLINE u32 byte_pair(u32 t) {            // two codes of 8 bits -> u - 128
#if HALF
    return sub2(and_or(t, 0x00ff00ffu, magic(0)), twice(0x6480u));
#else
    return sub2(and_or(t, 0x007f007fu, magic(0)), and_xor(t, 0x00800080u, 0x43804380u));
#endif
}

struct Zero {                                                // what is taken off a pair of one row
    u32 at[8];                                               // by the bit where its code is put; at[0] for 8 bits
};

INLINE Zero zero_of(u32 code) {          // code: one row's zero
    Zero z;
    if constexpr (BITS == 8) {
        z.at[0] = byte_pair(twice(code));
    } else {
#pragma unroll
        for (int at = 0; at < 8; at++) z.at[at] = twice(code) << at | magic(at);
    }
    return z;
}

struct Words {
    u32 low[2 * LOW];
    u32 high[ODD ? 2 : 1];
    INLINE u32 get(int i) const { return i < 2 * LOW ? low[i % (2 * LOW)] : high[i % 2 * ODD]; }
};

struct Place { int word, shift, at; };                       // of a pair: its word, moved down by `shift`, has it at bit `at`

__host__ __device__ constexpr Place place_of(int pair) {
    if (BITS == 3) {
        const int word = pair / 5, i = pair % 5;
        return i < 4 ? Place{word, i / 2 * 6, i % 2 * 3} : Place{word, 12 - word % 3, 1 + word % 3};
    }
    if (BITS == 5 || BITS == 6) return {pair / (16 / BITS), pair % (16 / BITS) * BITS, 0};
    const int together = BITS == 4 ? 1 + HALF : 3 + HALF, i = pair % (16 / BITS);   // pairs that one shift serves
    return {pair / (16 / BITS), i / together * together * BITS, i % together * BITS};
}

// pair I of a lane: element values less zero
template <int I>
INLINE u32 pair_of(const Words& words, const Zero& zero) {
    if constexpr (BITS == 8) {
        const u32 w = words.get(I / 2), v = byte_pair(I % 2 ? w >> 8 : w);
        return ASYM ? sub2(v, zero.at[0]) : v;
    } else {
        constexpr bool spread = (ODD && I >= 30) || (BITS == 6 && I >= 24);  // over the spare bits of BITS words, or of two
        constexpr Place place = place_of(spread ? 0 : I);
        u32 v = magic(place.at);
        if constexpr (spread && ODD) {
#pragma unroll
            for (int bit = 0; bit < BITS; bit++) v = and_or(words.get(I % 2 * BITS + bit) >> ((BITS == 3 ? 12 : 15) - bit), twice(1 << bit), v);
        } else if constexpr (spread) {
            constexpr int first = (I - 24) / 2 * 3;
            v = and_or(words.get(first + I % 2) >> 12, twice(15), v);
            v = and_or(words.get(first + 2) >> (8 + I % 2 * 2), twice(48), v);
        } else {
            v = and_or(words.get(place.word) >> place.shift, twice(((1u << BITS) - 1) << place.at), v);
        }
        return sub2(v, ASYM ? zero.at[place.at] : magic(place.at) | twice(1u << (BITS - 1) << place.at));
    }
}

// CODEC: the 16 bits that end with code I (0 .. 7) of a lane's bits of tile N of the chunk; `before`: the words of the lane before.
// 2 and 4 bits: some begin at bytes of the bits as they are, the others once these are shifted
template <int N>
INLINE void ends(u32 (&state)[8], const Words& own, const Words& before) {
    if constexpr (BITS == 2) {
        const u32 low = bytes(own.low[N / 2], before.low[N / 2], N % 2 ? 0x7632 : 0x5410);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 up = low << (2 * i + 2) % 8;           // from bit 14 - 2 i on, put at bit 16, or from bit 8 on
            state[i] = i < 3 ? up >> 16 : bytes(up, 0, 0x4421);
            state[4 + i] = i < 3 ? bytes(up, 0, 0x4421) : up & 0xffff;
        }
    } else if constexpr (BITS == 3) {                        // bytes of `low`: own lowest, own middle and highest, one before
        u32 low = bytes(own.low[N / 2], own.high[N / 4 * (BITS == 3)], 4 + N % 4 + (N % 2 ? 0x320 : 0x100));
        low = bytes(low, before.high[N / 4 * (BITS == 3)], 0x4210 + 0x1000 * (N % 4));
        const u32 high = before.low[N / 2] >> (N % 2 * 16) & 0xffff;
#pragma unroll
        for (int i = 0; i < 8; i++) state[i] = shifted(low, high, BITS * (7 - i)) & 0xffff;
    } else {
        const u32 low = own.low[N % (2 * LOW)], high = before.low[N % (2 * LOW)], up = shifted(low, high, 4);
        state[0] = shifted(low, high, 28) & 0xffff, state[1] = bytes(low, high, 0x43) & 0xffff;
        state[2] = up >> 16, state[3] = low >> 16;
        state[4] = bytes(up, 0, 0x4421), state[5] = bytes(low, 0, 0x4421);
        state[6] = up & 0xffff, state[7] = low & 0xffff;
    }
}

// 1024 + the sums of the bytes of four words, as halves. Where wgmma holds the tensor cores: by one dot product each
INLINE void byte_sums(u32 (&sums)[4], const u32* words) {
    if constexpr (WIDE) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] = dot_bytes(words[i], 0x01010101u, 0x6400u);
    } else {
        sums_of_bytes(sums, words, ones_of(threadIdx.x % 32), 0x6400u);
    }
}

template <int N>
INLINE void decoded_tile(u32* a, const Words& own, const Words& before) {
    u32 state[8];
    ends<N>(state, own, before);
#pragma unroll
    for (int i = 0; i < 8; i++) state[i] *= 0x83DCD12Du;
#pragma unroll
    for (int half = 0; half < 2; half++) {                   // columns + 8 for i, rows + 8 for half
        u32 sums[4];
        byte_sums(sums, state + 4 * half);
#pragma unroll
        for (int i = 0; i < 2; i++) a[i * 2 + half] = fma2(bytes(sums[2 * i], sums[2 * i + 1], 0x5410), 0x1EEE1EEEu, 0xC931C931u);
    }
}

// LUT: the four pairs of a word, whose places lie in its nibbles in order; table.low: lower bytes of the 16 halves, then their upper bytes
INLINE void looked_up(u32* a, u32 w, const u32* table) {
    const u32 places = w & 0x77777777u, shifted_up = w << 4;
#pragma unroll
    for (int e = 0; e < 2; e++) {                            // nibbles 0 .. 3 and 4 .. 7; a choice is its lowest four
        const u32 four = e ? places >> 16 : places;
        const u32 above = bytes(shifted_up, w, e ? 0xFBEA : 0xD9C8);         // ff where a place is 8 or more: its top bit, spread
        u32 half[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const u32 below = bytes(table[4 * h], table[4 * h + 1], four), over = bytes(table[4 * h + 2], table[4 * h + 3], four);
            half[h] = chosen(above, over, below);
        }
        a[2 * e] = bytes(half[0], half[1], 0x5140), a[2 * e + 1] = bytes(half[0], half[1], 0x7362);
    }
}

// VECTORS: two books, the copy of a lane. Eight lanes read at once: with eight copies beside each other none waits for another
struct Books {
    const uint4* own;
    int copies;
};

// VECTORS: the four pairs of eight columns in a row
INLINE void eight(u32 (&pairs)[4], u32 code, const Books& books) {
    const uint4 p = books.own[(code & 255) * books.copies], q = books.own[(256 + (code >> 8)) * books.copies];
    const u32 one[4] = {p.x, p.y, p.z, p.w}, other[4] = {q.x, q.y, q.z, q.w};
    const u32 shift = 0xB400B400u ^ (code & 1) * 0x80008000u;        // -1/4, or 1/4 where the bit is set; taken off
#pragma unroll
    for (int j = 0; j < 4; j++) pairs[j] = VECTORS == 1 ? sub2(one[j] ^ other[j], shift) : sub2(one[j], other[j]);
}

// the operands of two steps (32 columns, unit U of the chunk) of one tile: a[4 * step + register]. before: CODEC: the words of the
// lane before; LUT: the table
template <int U>
INLINE void unit(u32 (&a)[8], const Words& words, const Words& before, const Zero& top, const Zero& bottom, const Books& books) {
    if constexpr (VECTORS) {                                 // of row r in the lower half of the unit's word, of row r + 8 in the upper one
        u32 upper[4], lower[4];
        eight(upper, words.low[U] & 0xffff, books), eight(lower, words.low[U] >> 16, books);
#pragma unroll
        for (int j = 0; j < 4; j++) a[2 * j] = upper[j], a[2 * j + 1] = lower[j];
        return;
    }
    if constexpr (CODEC) {
        decoded_tile<2 * U>(a, words, before), decoded_tile<2 * U + 1>(a + 4, words, before);
        return;
    }
    if constexpr (LUT) {
        looked_up(a, words.low[2 * U], before.low), looked_up(a + 4, words.low[2 * U + 1], before.low);
        return;
    }
    if constexpr (BITS == 16) {
#pragma unroll
        for (int j = 0; j < 8; j++) a[j] = words.low[U * 8 + j];
        return;
    }
    if constexpr (ACT) {                                     // 16 times code - 8: of a word row r in the lower nibbles, r + 8 in the upper ones
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 w = words.low[4 * U + j];
            a[2 * j] = and_xor(w << 4, 0xf0f0f0f0u, 0x80808080u), a[2 * j + 1] = and_xor(w, 0xf0f0f0f0u, 0x80808080u);
        }
        return;
    }
    a[0] = pair_of<8 * U>(words, top), a[1] = pair_of<8 * U + 1>(words, bottom);
    a[2] = pair_of<8 * U + 2>(words, top), a[3] = pair_of<8 * U + 3>(words, bottom);
    a[4] = pair_of<8 * U + 4>(words, top), a[5] = pair_of<8 * U + 5>(words, bottom);
    a[6] = pair_of<8 * U + 6>(words, top), a[7] = pair_of<8 * U + 7>(words, bottom);
}

INLINE float low_half(u32 pair) { return __uint_as_float(pair << 16); }   // scales are bfloat16
INLINE float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

INLINE Words table_of(const float* beside) {
    Words table;
#pragma unroll
    for (int i = 0; i < 2 * LOW; i++) table.low[i] = LUT ? __float_as_uint(beside[i % 8]) : 0;
    return table;
}

INLINE Words words_of(const u8* low, const u8* high, int lane) {
    Words w;
#pragma unroll
    for (int v = 0; v < LOW / 2; v++) {
        const uint4 q = *(const uint4*)(low + v * 512 + lane * 16);
        w.low[4 * v] = q.x, w.low[4 * v + 1] = q.y, w.low[4 * v + 2] = q.z, w.low[4 * v + 3] = q.w;
    }
    if (ODD) {
        const uint2 q = *(const uint2*)(high + lane * 8);
        w.high[0] = q.x, w.high[ODD] = q.y;
    }
    return w;
}

INLINE u32 scale_pair(u32 bits) {                            // a bfloat16 scale twice, in the type of x
    return (HALF ? (u32)rounded(low_half(bits)) : bits) * 0x00010001u;
}

// what the rows of a lane share in a group: zeros, and scales as float32 and, where weights are scaled, as pairs
struct Group {
    Zero top, bottom;
    float upper, lower;
    u32 upper2, lower2;
    INLINE void set(u32 scales, u32 zeros) {
        upper = low_half(scales), lower = high_half(scales);
        if (SCALED) upper2 = scale_pair(scales & 0xffff), lower2 = scale_pair(scales >> 16);
        if (ASYM) top = zero_of(zeros & 0xffff), bottom = zero_of(zeros >> 16);
    }
};

INLINE u16 in_type(float v) { return OUT ? rounded_bfloat(v) : rounded(v); }
