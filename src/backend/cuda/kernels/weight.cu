/* A frozen weight (n, k), row-major, read eight columns at a time. FORMAT says how it lies:
 * dense values; or codes, and scales of blocks within each row. Codes of 4 bits lie eight to a word,
 * the first lowest. */

#define F32 0
#define F16 1
#define BF16 2
#define FOUR_BIT 3        /* levels[code] · absmax */
#define FOUR_BIT_DOUBLE 4 /* levels[code] · (map[absmax code] · second + offset) */
#define Q8_0 5            /* scale · code */
#define Q4_0 6            /* scale · (code − 8) */
#define Q4_K 7            /* d · scale · code − dmin · min */

typedef struct {
    const void *codes;
    /* Absmax or its codes, scales in f16, or the sixteen bytes that head a block of Q4_K. */
    const void *scales;
    /* One per 256 absmax codes. */
    const float *second;
    /* Sixteen levels, then the 256 of absmax. */
    const float *levels;
    i64 n, k;
    /* Values per absmax. */
    i64 block;
    double offset;
} Weight;

#if FORMAT == FOUR_BIT || FORMAT == FOUR_BIT_DOUBLE
/* The levels, where every lane may look up another one at a time. */
__shared__ float levels[16];
DEVICE void prepare(const Weight *w) {
    if (threadIdx.x < 16) levels[threadIdx.x] = w->levels[threadIdx.x];
    __syncthreads();
}
#else
DEVICE void prepare(const Weight *w) { (void)w; }
#endif

/* Columns 8 chunk .. 8 chunk + 8 of a row; zeros beyond the last. */
DEVICE void load8(const Weight *w, i64 row, int chunk, float *to) {
#if FORMAT == F32
    const float *from = (const float *)w->codes + row * w->k + chunk * 8;
    int left = (int)(w->k - (i64)chunk * 8);
    if (w->k % 4 == 0 && left >= 8) {
        const words4 low = *(const words4 *)from, high = *(const words4 *)(from + 4);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[i] = bits_to_float(low.w[i]);
            to[i + 4] = bits_to_float(high.w[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = i < left ? from[i] : 0.0f;
    }
#elif FORMAT == F16 || FORMAT == BF16
#if FORMAT == F16
#define WIDEN f16_to_float
#else
#define WIDEN bf16_to_float
#endif
    const u16 *from = (const u16 *)w->codes + row * w->k + chunk * 8;
    int left = (int)(w->k - (i64)chunk * 8);
    if (w->k % 8 == 0) {
        const words4 all = *(const words4 *)from;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[2 * i] = WIDEN((u16)(all.w[i] & 0xffff));
            to[2 * i + 1] = WIDEN((u16)(all.w[i] >> 16));
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = i < left ? WIDEN(from[i]) : 0.0f;
    }
#elif FORMAT == FOUR_BIT || FORMAT == FOUR_BIT_DOUBLE
    i64 at = row * (w->k / 8) + chunk, block = at * 8 / w->block;
    u32 codes = ((const u32 *)w->codes)[at];
#if FORMAT == FOUR_BIT
    float absmax = ((const float *)w->scales)[block];
#else
    /* Two roundings, as torch has them. */
    float absmax = w->levels[16 + ((const u8 *)w->scales)[block]] * w->second[block / 256];
    absmax = absmax + (float)w->offset;
#endif
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = levels[(codes >> (4 * i)) & 15] * absmax;
#elif FORMAT == Q8_0
    i64 at = row * (w->k / 8) + chunk;
    const u32 *codes = (const u32 *)w->codes + 2 * at;
    float scale = f16_to_float(((const u16 *)w->scales)[at / 4]);
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = scale * (float)(i8)((codes[i / 4] >> (8 * (i % 4))) & 255);
#elif FORMAT == Q4_0
    i64 at = row * (w->k / 8) + chunk;
    u32 codes = ((const u32 *)w->codes)[at];
    float scale = f16_to_float(((const u16 *)w->scales)[at / 4]);
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = scale * (float)((int)((codes >> (4 * i)) & 15) - 8);
#elif FORMAT == Q4_K
    i64 at = row * (w->k / 8) + chunk;
    u32 codes = ((const u32 *)w->codes)[at];
    const u8 *head = (const u8 *)w->scales + at / 32 * 16;
    float d = f16_to_float(*(const u16 *)head), dmin = f16_to_float(*(const u16 *)(head + 2));
    int part = chunk / 4 % 8;
    u32 scale, min;
    if (part < 4) {
        scale = head[4 + part] & 63;
        min = head[8 + part] & 63;
    } else {
        scale = (head[8 + part] & 15) | (head[part] >> 6 << 4);
        min = (head[8 + part] >> 4) | (head[4 + part] >> 6 << 4);
    }
    float by = d * (float)scale, less = dmin * (float)min;
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = by * (float)((codes >> (4 * i)) & 15) - less;
#endif
}
