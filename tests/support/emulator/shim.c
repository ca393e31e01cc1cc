/* CUDA's execution model on one CPU thread: stands before the text of a kernel file and turns it into
 * C. Blocks run one after another; the threads of a block are fibers that run until they must wait for
 * their warp or their block. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define EMULATED
#define __shared__ static
#define DEVICE static inline __attribute__((unused))
#define ALIGNED16 __attribute__((aligned(16)))

enum { MOST_THREADS = 256, STACK = 64 << 10 };
enum state { READY, AT_WARP, AT_BLOCK, DONE };

static struct { unsigned x, y; } threadIdx, blockIdx, gridDim;

static ucontext_t beginnings[MOST_THREADS];
static jmp_buf fibers[MOST_THREADS], scheduler;
static int begun[MOST_THREADS];
static char *stacks;

static unsigned thread_of[MOST_THREADS]; /* which thread a fiber runs */
static unsigned state[MOST_THREADS], turn[MOST_THREADS], threads, next, fiber;
static float exchanged[2][MOST_THREADS];
static void (*body)(const void *);
static const void *arguments;

/* A fiber takes one thread after another, as long as none of them has to wait. */
static void run_fiber(void) {
    unsigned self = fiber;
    for (;;) {
        while (next < threads && next / 32 == thread_of[self] / 32) {
            threadIdx.x = thread_of[self] = next++;
            body(arguments);
            state[thread_of[self]] = DONE;
        }
        thread_of[self] = MOST_THREADS;
        if (_setjmp(fibers[self]) == 0) _longjmp(scheduler, 1);
    }
}

static void switch_to(unsigned chosen) {
    fiber = chosen;
    if (_setjmp(scheduler)) return;
    if (begun[chosen]) _longjmp(fibers[chosen], 1);
    begun[chosen] = 1;
    getcontext(&beginnings[chosen]);
    beginnings[chosen].uc_stack.ss_sp = stacks + (size_t)chosen * STACK;
    beginnings[chosen].uc_stack.ss_size = STACK;
    makecontext(&beginnings[chosen], run_fiber, 0);
    setcontext(&beginnings[chosen]);
}

static void __attribute__((noinline)) await_others(enum state what) {
    unsigned thread = threadIdx.x;
    state[thread] = what;
    if (_setjmp(fibers[fiber]) == 0) _longjmp(scheduler, 1);
    threadIdx.x = thread;
}

static void __attribute__((noinline, unused)) __syncthreads(void) { await_others(AT_BLOCK); }

static float __attribute__((noinline, unused)) exchange(float value, unsigned lane) {
    unsigned thread = threadIdx.x, half = turn[thread]++ & 1;
    exchanged[half][thread] = value;
    await_others(AT_WARP);
    return exchanged[half][(thread & ~31u) + lane];
}
#define WARP_XOR(value, mask) exchange(value, (threadIdx.x & 31) ^ (unsigned)(mask))
#define WARP_READ(value, lane) exchange(value, (unsigned)(lane))

/* Leaves six words in this thread's place and waits for the warp; which half of the place they lie in. */
static unsigned __attribute__((noinline, unused)) meet(unsigned (*places)[MOST_THREADS][6], const unsigned *four,
                                                       const unsigned *two) {
    unsigned thread = threadIdx.x, half = turn[thread]++ & 1;
    memcpy(places[half][thread], four, 4 * sizeof *four);
    memcpy(places[half][thread] + 4, two, 2 * sizeof *two);
    await_others(AT_WARP);
    return half;
}
#define MEET(places, four, two) meet(places, four, two)

/* Runs the threads of a warp until each has ended or waits for the block. */
static int run_warp(unsigned first, unsigned end) {
    for (;;) {
        /* Threads that have begun lie on fibers of the warp; the rest begin on its next free one. */
        for (unsigned f = first; f < end; f++)
            if (thread_of[f] != MOST_THREADS && state[thread_of[f]] == READY) switch_to(f);
        while (next < end) {
            unsigned f = first;
            while (thread_of[f] != MOST_THREADS) f++;
            thread_of[f] = first;
            switch_to(f);
        }
        unsigned at_warp = 0, rest = 0;
        for (unsigned t = first; t < end; t++) {
            at_warp += state[t] == AT_WARP;
            rest += state[t] == AT_BLOCK;
        }
        if (at_warp == 0) return 1;
        if (rest > 0) return 0;
        for (unsigned t = first; t < end; t++)
            if (state[t] == AT_WARP) state[t] = READY;
    }
}

static int run_block(void) {
    next = 0;
    for (unsigned t = 0; t < MOST_THREADS; t++) {
        state[t] = READY;
        turn[t] = 0;
    }
    for (;;) {
        for (unsigned first = 0; first < threads; first += 32)
            if (!run_warp(first, first + 32)) return 0;
        unsigned done = 0;
        for (unsigned t = 0; t < threads; t++) {
            done += state[t] == DONE;
            if (state[t] == AT_BLOCK) state[t] = READY;
        }
        if (done == threads) return 1;
    }
}

/* 0 when all is done; 1 if threads of one warp wait for different things. */
int emulate(void (*kernel)(const void *), const void *args, unsigned width, unsigned height, unsigned count) {
    if (!stacks) {
        stacks = malloc((size_t)MOST_THREADS * STACK);
        for (unsigned f = 0; f < MOST_THREADS; f++) thread_of[f] = MOST_THREADS;
    }
    body = kernel;
    arguments = args;
    threads = count;
    gridDim.x = width;
    gridDim.y = height;
    for (blockIdx.y = 0; blockIdx.y < height; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < width; blockIdx.x++)
            if (!run_block()) return 1;
    return 0;
}

/* The struct's size goes with the kernel, so that a call with other arguments is noticed. */
#define KERNEL(name, Args)                                             \
    static void name##_body(const Args a);                             \
    void name(const void *args) { name##_body(*(const Args *)args); }  \
    const unsigned name##_bytes = sizeof(Args);                        \
    static void name##_body(const Args a)
