/* NumPy's legacy permutations in bulk: MT19937, and a Fisher-Yates shuffle whose picks are drawn by masked rejection.

Built where a C compiler is found when kohort is installed; without it NumPy draws the same, at a fifth of the speed.
The order of the words and picks is that of NumPy's `RandomState.shuffle`; the generator is the Mersenne Twister of
Matsumoto and Nishimura (ACM TOMACS 8, 1998).

What makes it fast: words are made 624 at a time, in loops that a compiler turns into vector instructions, and a
rejected pick is a swap of a place with itself instead of a branch that is guessed wrongly one time in three.
*/
#include <stdint.h>

enum { WORDS = 624, SHIFT = 397 };

/* As NumPy lays it out, where `MT19937().ctypes.state_address` points. */
typedef struct {
    uint32_t key[WORDS];
    int position;
} Generator;

static inline uint32_t twisted(uint32_t upper, uint32_t lower) {
    uint32_t mixed = (upper & 0x80000000u) | (lower & 0x7fffffffu);
    return (mixed >> 1) ^ ((0u - (lower & 1u)) & 0x9908b0dfu);
}

static void renew(uint32_t *key) {
    for (int i = 0; i < WORDS - SHIFT; i++) key[i] = key[i + SHIFT] ^ twisted(key[i], key[i + 1]);
    for (int i = WORDS - SHIFT; i < WORDS - 1; i++) key[i] = key[i + SHIFT - WORDS] ^ twisted(key[i], key[i + 1]);
    key[WORDS - 1] = key[SHIFT - 1] ^ twisted(key[WORDS - 1], key[0]);
}

static void temper(const uint32_t *key, uint32_t *words) {
    for (int i = 0; i < WORDS; i++) {
        uint32_t y = key[i];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680u;
        y ^= (y << 15) & 0xefc60000u;
        words[i] = y ^ (y >> 18);
    }
}

/* Draws `counts[i]` permutations of 0 to rows - 1 by the generator `members[i]`, for each i below `length`.

They go into `room`, an array (place, epoch, row) of which a place has `size` numbers: into that at `places[i]`. The
generators begin as they are in `before`; how they are left goes into `after`, which may be the same.
*/
#define PERMUTED(NAME, NUMBER)                                                                                  \
    static void shuffle_##NUMBER(Generator *generator, NUMBER *own, uint32_t rows, int64_t count) {             \
        uint32_t words[WORDS];                                                                                  \
        int position = generator->position;                                                                     \
        if (position < WORDS) temper(generator->key, words);                                                    \
        for (NUMBER *end = own + count * (int64_t)rows; own < end; own += rows) {                               \
            for (uint32_t k = 0; k < rows; k++) own[k] = (NUMBER)k;                                             \
            for (uint32_t last = rows - 1; last;) {                                                             \
                uint32_t mask = 0xffffffffu >> __builtin_clz(last), least = mask >> 1;                          \
                while (last > least) {                                                                          \
                    if (position == WORDS) {                                                                    \
                        renew(generator->key);                                                                  \
                        temper(generator->key, words);                                                          \
                        position = 0;                                                                           \
                    }                                                                                           \
                    uint32_t pick = words[position++] & mask, taken = pick <= last;                             \
                    uint32_t place = taken ? pick : last;                                                       \
                    NUMBER kept = own[last];                                                                    \
                    own[last] = own[place];                                                                     \
                    own[place] = kept;                                                                          \
                    last -= taken;                                                                              \
                }                                                                                               \
            }                                                                                                   \
        }                                                                                                       \
        generator->position = position;                                                                         \
    }                                                                                                           \
                                                                                                                \
    void NAME(const Generator *before, Generator *after, const int64_t *members, const int64_t *places,         \
              const int64_t *counts, int64_t length, NUMBER *room, int64_t size, int64_t rows) {                \
        for (int64_t i = 0; i < length; i++) {                                                                  \
            Generator *generator = after + members[i];                                                          \
            if (before != after) *generator = before[members[i]];                                               \
            if (counts[i]) shuffle_##NUMBER(generator, room + places[i] * size, (uint32_t)rows, counts[i]);     \
        }                                                                                                       \
    }

PERMUTED(permuted_1, uint8_t)
PERMUTED(permuted_2, uint16_t)
PERMUTED(permuted_4, uint32_t)
