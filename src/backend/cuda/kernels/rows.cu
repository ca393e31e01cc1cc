/* What is done value by value, or row by row without looking left or right. */

/* y += factor · x, over count values. */
typedef struct { const float *x; float *y; i64 count; double factor; } AddArgs;
KERNEL(add, AddArgs) {
    i64 i = index_of();
    if (i < a.count) a.y[i] += (float)a.factor * a.x[i];
}

/* Rows of width values as bf16, two to a word: value i low, value ceil(width / 2) + i high. */
typedef struct { const float *x; u32 *words; i64 rows, width; } HalveArgs;
KERNEL(halve, HalveArgs) {
    i64 i = index_of(), count = (a.width + 1) / 2;
    if (i >= a.rows * count) return;
    const float *x = a.x + i / count * a.width;
    i64 low = i % count, high = count + low;
    u32 upper = high < a.width ? float_to_bf16(x[high]) : 0;
    a.words[i] = float_to_bf16(x[low]) | upper << 16;
}

/* The values of those words. */
typedef struct { const u32 *words; float *x; i64 rows, width; } WidenArgs;
KERNEL(widen, WidenArgs) {
    i64 i = index_of(), count = (a.width + 1) / 2;
    if (i >= a.rows * a.width) return;
    i64 c = i % a.width;
    u32 word = a.words[i / a.width * count + c % count];
    a.x[i] = bf16_to_float((u16)(c < count ? word : word >> 16));
}

/* x *= factor. */
typedef struct { float *x; i64 count; double factor; } ScaleArgs;
KERNEL(scale, ScaleArgs) {
    i64 i = index_of();
    if (i < a.count) a.x[i] *= (float)a.factor;
}

/* z = cap · tanh(scale · z / cap), or scale · z without a cap. */
typedef struct { float *z; i64 count; double scale, cap; } LogitArgs;
KERNEL(scale_logits, LogitArgs) {
    i64 i = index_of();
    if (i >= a.count) return;
    float z = (float)a.scale * a.z[i], cap = (float)a.cap;
    a.z[i] = cap > 0.0f ? cap * tanhf(z / cap) : z;
}

/* dz *= scale · (1 − (z / cap)²), z being the output. */
typedef struct { const float *z; float *dz; i64 count; double scale, cap; } LogitBackwardArgs;
KERNEL(scale_logits_backward, LogitBackwardArgs) {
    i64 i = index_of();
    if (i >= a.count) return;
    float part = a.cap > 0.0 ? a.z[i] / (float)a.cap : 0.0f;
    a.dz[i] *= (float)a.scale * (1.0f - part * part);
}

/* y[i] = x[rows[i]]. */
typedef struct { const float *x; const u32 *rows; i64 count, width; float *y; } GatherArgs;
KERNEL(gather, GatherArgs) {
    i64 i = index_of();
    if (i < a.count * a.width) a.y[i] = a.x[a.rows[i / a.width] * a.width + i % a.width];
}

/* y[rows[i]] += factor · x[i], in the order of i; a thread per column. Grid: width / THREADS. */
typedef struct { const float *x; const u32 *rows; i64 count, width; double factor; float *y; } ScatterArgs;
KERNEL(scatter_add, ScatterArgs) {
    i64 c = index_of();
    if (c >= a.width) return;
    for (i64 i = 0; i < a.count; i++)
        a.y[a.rows[i] * a.width + c] += (float)a.factor * a.x[i * a.width + c];
}

/* y = x · mask / (1 − p): SplitMix64 of key and index, 24 bits of it against p. */
typedef struct { const float *x; float *y; i64 count; u64 key; double p; } DropoutArgs;
KERNEL(dropout, DropoutArgs) {
    i64 i = index_of();
    if (i >= a.count) return;
    u64 z = a.key + ((u64)i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    float p = (float)a.p;
    a.y[i] = (float)(u32)(z >> 40) / 16777216.0f >= p ? a.x[i] / (1.0f - p) : 0.0f;
}

/* y[row, at + o] += strength · (factor[o] − 1) · (y − bias[o]). */
typedef struct {
    float *y;
    i64 rows, y_width, at, n;
    const float *factor;
    double strength;
    const float *bias;
} ColumnArgs;
KERNEL(scale_columns, ColumnArgs) {
    i64 i = index_of();
    if (i >= a.rows * a.n) return;
    i64 o = i % a.n;
    float *y = a.y + i / a.n * a.y_width + a.at + o;
    float bias = a.bias ? a.bias[o] : 0.0f;
    *y += (float)a.strength * (a.factor[o] - 1.0f) * (*y - bias);
}

/* du = factor ⊙ dy[:, at..], dmagnitude += Σ dy ⊙ u / norm over the rows in order; a thread per column. */
typedef struct {
    const float *dy;
    i64 rows, dy_width, at, n;
    const float *u, *factor, *norm;
    float *du, *dmagnitude;
} ColumnBackwardArgs;
KERNEL(scale_columns_backward, ColumnBackwardArgs) {
    i64 o = index_of();
    if (o >= a.n) return;
    float sum = 0.0f;
    for (i64 row = 0; row < a.rows; row++) {
        float dy = a.dy[row * a.dy_width + a.at + o];
        sum = fmaf(dy, a.u[row * a.n + o], sum);
        a.du[row * a.n + o] = a.factor[o] * dy;
    }
    a.dmagnitude[o] += sum / a.norm[o];
}

/* One AdamW step, decay first. Loshchilov & Hutter 2019, algorithm 2. */
typedef struct {
    float *p;
    const float *g;
    float *m, *v;
    i64 count;
    double decay, beta2, rest1, rest2, rate, correction, epsilon;
} AdamArgs;
KERNEL(adamw, AdamArgs) {
    i64 i = index_of();
    if (i >= a.count) return;
    float g = a.g[i], p = a.p[i] * (float)a.decay;
    float m = a.m[i] + (float)a.rest1 * (g - a.m[i]);
    float v = a.v[i] * (float)a.beta2 + (float)a.rest2 * g * g;
    a.p[i] = p - (float)a.rate * m / (sqrtf(v) / (float)a.correction + (float)a.epsilon);
    a.m[i] = m;
    a.v[i] = v;
}

/* Σ x² of runs of SQUARES_RUN values, in f64. Grid: runs. */
#define SQUARES_RUN 4096
typedef struct { const float *x; i64 count; double *sums; } SquaresArgs;
KERNEL(sum_of_squares, SquaresArgs) {
    __shared__ double sums[THREADS];
    i64 start = (i64)blockIdx.x * SQUARES_RUN, end = start + SQUARES_RUN;
    if (end > a.count) end = a.count;
    double sum = 0.0;
    for (i64 i = start + threadIdx.x; i < end; i += THREADS) sum += (double)a.x[i] * (double)a.x[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        for (int i = 1; i < WARPS; i++) sum += sums[i * 32 + threadIdx.x];
        sums[threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < 32; i++) sum += sums[i];
        a.sums[blockIdx.x] = sum;
    }
}
