/* What every kernel file begins with. The files are C that is CUDA C++ as well, without includes:
 * NVRTC finds none on a machine without a toolkit, and the tests compile the same text for the CPU.
 *
 * A kernel takes one struct whose members are eight bytes each: addresses, i64 and double. Products
 * and sums are fused only where fmaf says so (--fmad=false), so that two kernels that state the same
 * sums in the same order give the same bits. */

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#ifndef EMULATED
#define KERNEL(name, Args) extern "C" __global__ void name(const Args a)
#define DEVICE static __device__ __forceinline__
#define ALIGNED16 __align__(16)
#define INFINITY __int_as_float(0x7f800000)
#define WARP_XOR(value, mask) __shfl_xor_sync(0xffffffffu, value, mask)
#define WARP_READ(value, lane) __shfl_sync(0xffffffffu, value, lane)
#endif

typedef struct ALIGNED16 { u32 w[4]; } words4;

/* Threads of every block. */
#define THREADS 256
#define WARPS 8

DEVICE int lane_of(void) { return threadIdx.x & 31; }
DEVICE int warp_of(void) { return threadIdx.x >> 5; }
/* The index of this thread among all, for elementwise kernels. */
DEVICE i64 index_of(void) { return (i64)blockIdx.x * THREADS + threadIdx.x; }

DEVICE float bits_to_float(u32 bits) {
    union { u32 u; float f; } both;
    both.u = bits;
    return both.f;
}
DEVICE u32 float_to_bits(float x) {
    union { u32 u; float f; } both;
    both.f = x;
    return both.u;
}

DEVICE float bf16_to_float(u16 x) { return bits_to_float((u32)x << 16); }
/* To the nearest, ties to even; NaN stays NaN. */
DEVICE u16 float_to_bf16(float x) {
    u32 bits = float_to_bits(x);
    if (x != x) return (u16)((bits >> 16) | 0x40);
    return (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#ifdef EMULATED
DEVICE float f16_to_float(u16 x) {
    u32 sign = (u32)(x & 0x8000) << 16, magnitude = (u32)(x & 0x7fff) << 13;
    if (magnitude >= 0x7c00u << 13) return bits_to_float(sign | magnitude | 0x7f800000);
    /* 2^112 moves the exponent's bias from 15 to 127, and makes subnormals normal. */
    float value = bits_to_float(magnitude) * bits_to_float(0x77800000);
    return bits_to_float(sign | float_to_bits(value));
}
#else
DEVICE float f16_to_float(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
#endif

DEVICE float warp_sum(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) x += WARP_XOR(x, mask);
    return x;
}
DEVICE float warp_max(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) x = fmaxf(x, WARP_XOR(x, mask));
    return x;
}

/* The sum over all threads of the block, for each of them; scratch holds WARPS values. */
DEVICE float block_sum(float x, float *scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (lane_of() == 0) scratch[warp_of()] = x;
    __syncthreads();
    float sum = scratch[0];
    for (int i = 1; i < WARPS; i++) sum += scratch[i];
    return sum;
}
DEVICE float block_max(float x, float *scratch) {
    x = warp_max(x);
    __syncthreads();
    if (lane_of() == 0) scratch[warp_of()] = x;
    __syncthreads();
    float largest = scratch[0];
    for (int i = 1; i < WARPS; i++) largest = fmaxf(largest, scratch[i]);
    return largest;
}
