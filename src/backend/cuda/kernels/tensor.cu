/* Products on tensor cores, from sm_80 on: activations and weights rounded to bf16, sums in f32.
 *
 * mma.sync takes 16 rows of x, 8 rows of W and 16 columns. Which columns these are is free, as long as x
 * and W agree: the four lanes of a row take a chunk of eight each, half in a first mma and half in a
 * second, so that a unit is 32 columns. The order of a sum is fixed: PARTS parts, part p of the units p,
 * p + PARTS, …; then the parts in order. Both forward kernels keep it, so a row has the same bits whether
 * it comes alone or in a batch. */

typedef struct {
    Weight w;
    const float *x;
    i64 m, x_width;
    const float *bias;
    float *y;
    i64 y_width, at;
    double alpha;
    i64 add;
} ProductArgs;

#define PARTS 8
#define UNIT 32
/* Rows and outputs of an mma. */
#define MMA_ROWS 16
#define MMA_OUTPUTS 8
#define TILE 64

#ifdef EMULATED
DEVICE u32 pack(float low, float high) {
    return float_to_bf16(low) | (u32)float_to_bf16(high) << 16;
}
/* What each lane brings to an mma: four words of x, two of W. */
static u32 brought[2][THREADS][6];
/* Row r of x lies with the lanes 4 (r % 8) …, row n of W with the lanes 4 n …; lane l has the rows l / 4
 * and l / 4 + 8, and of them the outputs 2 (l % 4) and the next. */
DEVICE void mma(float *sum, const u32 *x, const u32 *w) {
    u32 half = MEET(brought, x, w), warp = threadIdx.x & ~31u, lane = threadIdx.x & 31;
    for (u32 i = 0; i < 4; i++) {
        u32 row = lane / 4, n = 2 * (lane % 4) + i % 2;
        for (u32 t = 0; t < 4; t++)
            for (u32 part = 0; part < 2; part++) {
                u32 a = brought[half][warp + 4 * row + t][2 * part + i / 2];
                u32 b = brought[half][warp + 4 * n + t][4 + part];
                sum[i] += bf16_to_float((u16)a) * bf16_to_float((u16)b);
                sum[i] += bf16_to_float((u16)(a >> 16)) * bf16_to_float((u16)(b >> 16));
            }
    }
}
#else
DEVICE u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
DEVICE void mma(float *sum, const u32 *x, const u32 *w) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(w[0]), "r"(w[1]));
}
#endif

/* Both mmas of a unit: a chunk of two rows of x, eight apart, and of one row of W. */
DEVICE void unit(float *sum, words4 upper, words4 lower, words4 w) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 x[4] = {upper.w[2 * half], lower.w[2 * half], upper.w[2 * half + 1], lower.w[2 * half + 1]};
        u32 of_w[2] = {w.w[2 * half], w.w[2 * half + 1]};
        mma(sum, x, of_w);
    }
}

DEVICE words4 pack8(const float *x) {
    words4 packed;
#pragma unroll
    for (int i = 0; i < 4; i++) packed.w[i] = pack(x[2 * i], x[2 * i + 1]);
    return packed;
}

/* Columns first .. first + 8 of a row, zeros beyond count. */
DEVICE words4 row_chunk(const float *row, i64 first, i64 count) {
    float x[8];
    if (first + 8 <= count && ((u64)(row + first) & 15) == 0) {
        const words4 low = *(const words4 *)(row + first), high = *(const words4 *)(row + first + 4);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            x[e] = bits_to_float(low.w[e]);
            x[e + 4] = bits_to_float(high.w[e]);
        }
        return pack8(x);
    }
#pragma unroll
    for (int e = 0; e < 8; e++) x[e] = first + e < count ? row[first + e] : 0.0f;
    return pack8(x);
}

DEVICE words4 weight_chunk(const Weight *w, i64 row, i64 chunk) {
    float x[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (row < w->n && chunk * 8 < w->k) load8(w, row, (int)chunk, x);
    return pack8(x);
}

DEVICE void finish(const ProductArgs *a, i64 row, i64 column, float sum) {
    float *y = a->y + row * a->y_width + a->at + column;
    float value = (float)a->alpha * sum;
    if (a->bias) value += a->bias[column];
    *y = a->add ? *y + value : value;
}

/* Few rows: a warp is a part. Grid: n / 8, m / 16. */
KERNEL(tensor_few, ProductArgs) {
    __shared__ float parts[PARTS][MMA_ROWS][MMA_OUTPUTS];
    prepare(&a.w);
    int lane = lane_of(), warp = warp_of(), g = lane / 4, t = lane % 4;
    i64 row = (i64)blockIdx.y * MMA_ROWS, column = (i64)blockIdx.x * MMA_OUTPUTS;
    i64 units = (a.w.k + UNIT - 1) / UNIT;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (i64 u = warp; u < units; u += PARTS) {
        i64 chunk = u * 4 + t;
        words4 w = weight_chunk(&a.w, column + g, chunk);
        words4 upper = row_chunk(a.x + (row + g) * a.x_width, chunk * 8, row + g < a.m ? a.w.k : 0);
        words4 lower = row_chunk(a.x + (row + g + 8) * a.x_width, chunk * 8, row + g + 8 < a.m ? a.w.k : 0);
        unit(sum, upper, lower, w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) parts[warp][g + i / 2 * 8][2 * t + i % 2] = sum[i];
    __syncthreads();
    int i = threadIdx.x / MMA_OUTPUTS, n = threadIdx.x % MMA_OUTPUTS;
    if (i >= MMA_ROWS || row + i >= a.m || column + n >= a.w.n) return;
    float total = 0.0f;
    for (int p = 0; p < PARTS; p++) total += parts[p][i][n];
    finish(&a, row + i, column + n, total);
}

/* A warp's part of a tile: 16 rows and 32 outputs. */
typedef struct { float of[4][4]; } Sums;

DEVICE void clear(Sums *s) {
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) s->of[n][i] = 0.0f;
}

/* Adds one unit of the tile that lies in shared memory, a chunk to each place. */
DEVICE void tile_unit(Sums *s, words4 (*xs)[4], words4 (*ws)[4], int row, int column) {
    int g = lane_of() / 4, t = lane_of() % 4;
    words4 upper = xs[row + g][t], lower = xs[row + g + 8][t];
#pragma unroll
    for (int n = 0; n < 4; n++) unit(s->of[n], upper, lower, ws[column + n * 8 + g][t]);
}

/* Many rows: tiles of 64 rows and 64 outputs; the parts one after another. Grid: n / 64, m / 64. */
KERNEL(tensor_many, ProductArgs) {
    __shared__ words4 xs[TILE][4], ws[TILE][4];
    prepare(&a.w);
    int warp = warp_of(), own_row = warp % 4 * MMA_ROWS, own_column = warp / 4 * 32;
    int r = threadIdx.x / 4, q = threadIdx.x % 4, g = lane_of() / 4, t = lane_of() % 4;
    i64 row = (i64)blockIdx.y * TILE, column = (i64)blockIdx.x * TILE;
    i64 units = (a.w.k + UNIT - 1) / UNIT;
    Sums total, sum;
    clear(&total);
    for (i64 part = 0; part < PARTS && part < units; part++) {
        clear(&sum);
        for (i64 u = part; u < units; u += PARTS) {
            i64 chunk = u * 4 + q;
            words4 w = weight_chunk(&a.w, column + r, chunk);
            words4 x = row_chunk(a.x + (row + r) * a.x_width, chunk * 8, row + r < a.m ? a.w.k : 0);
            __syncthreads();
            xs[r][q] = x;
            ws[r][q] = w;
            __syncthreads();
            tile_unit(&sum, xs, ws, own_row, own_column);
        }
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) total.of[n][i] += sum.of[n][i];
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            i64 to_row = row + own_row + g + i / 2 * 8, to = column + own_column + n * 8 + 2 * t + i % 2;
            if (to_row < a.m && to < a.w.n) finish(&a, to_row, to, total.of[n][i]);
        }
}

/* dx (+)= alpha · dy[:, at..at+n] W: W is turned on its way to shared memory; one chain over its rows.
 * Here x is dy and y is dx. Grid: k / 64, m / 64. */
KERNEL(tensor_transposed, ProductArgs) {
    __shared__ words4 gs[TILE][4], ws[TILE][4];
    prepare(&a.w);
    int warp = warp_of(), own_row = warp % 4 * MMA_ROWS, own_column = warp / 4 * 32;
    int g = lane_of() / 4, t = lane_of() % 4;
    i64 row = (i64)blockIdx.y * TILE, column = (i64)blockIdx.x * TILE;
    Sums sum;
    clear(&sum);
    for (i64 first = 0; first < a.w.n; first += UNIT) {
        int r = threadIdx.x / 4, q = threadIdx.x % 4, o = threadIdx.x / 8, c = threadIdx.x % 8;
        const float *dy = a.x + (row + r) * a.x_width + a.at;
        words4 from_dy = row_chunk(dy, first + q * 8, row + r < a.m ? a.w.n : 0);
        words4 w = weight_chunk(&a.w, first + o, column / 8 + c);
        __syncthreads();
        gs[r][q] = from_dy;
#pragma unroll
        for (int e = 0; e < 8; e++)
            ((u16 *)&ws[c * 8 + e][0])[o] = (u16)(w.w[e / 2] >> (16 * (e % 2)));
        __syncthreads();
        tile_unit(&sum, gs, ws, own_row, own_column);
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            i64 to_row = row + own_row + g + i / 2 * 8, to = column + own_column + n * 8 + 2 * t + i % 2;
            if (to_row >= a.m || to >= a.w.k) continue;
            float *y = a.y + to_row * a.y_width + to;
            float value = (float)a.alpha * sum.of[n][i];
            *y = a.add ? *y + value : value;
        }
}
