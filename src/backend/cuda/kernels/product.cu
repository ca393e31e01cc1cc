/* Products with a frozen weight, forward: y[:, at..at+n] = alpha · x Wᵀ (+ bias), or added to y.
 *
 * The order of a sum is fixed: 32 parts, part p of the chunks p, p + 32, … of eight columns, each one
 * chain of fused multiply-adds; then the parts in order. Both kernels keep it, so a row has the same
 * bits whether it comes alone or in a batch. */

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

#define PARTS 32

DEVICE void finish(const ProductArgs *a, i64 row, i64 column, float sum) {
    float *y = a->y + row * a->y_width + a->at + column;
    float value = (float)a->alpha * sum;
    if (a->bias) value += a->bias[column];
    *y = a->add ? *y + value : value;
}

/* Few rows: a lane is a part, a warp reads rows of the weight side by side. Bound by the bytes of the
 * weight. Grid: n / 32, m / FEW. */
#define FEW 4
#define EACH 4

KERNEL(product_few, ProductArgs) {
    __shared__ float parts[FEW][WARPS * EACH][PARTS + 1];
    prepare(&a.w);
    int lane = lane_of(), warp = warp_of(), chunks = (int)((a.w.k + 7) / 8);
    i64 column = (i64)blockIdx.x * WARPS * EACH, row = (i64)blockIdx.y * FEW;
    float sum[EACH][FEW];
#pragma unroll
    for (int n = 0; n < EACH; n++)
#pragma unroll
        for (int i = 0; i < FEW; i++) sum[n][i] = 0.0f;
    for (int chunk = lane; chunk < chunks; chunk += PARTS) {
        float x[FEW][8];
#pragma unroll
        for (int i = 0; i < FEW; i++)
#pragma unroll
            for (int e = 0; e < 8; e++) {
                int at = chunk * 8 + e;
                x[i][e] = row + i < a.m && at < a.w.k ? a.x[(row + i) * a.x_width + at] : 0.0f;
            }
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            i64 mine = column + warp * EACH + n;
            if (mine >= a.w.n) continue;
            float w[8];
            load8(&a.w, mine, chunk, w);
#pragma unroll
            for (int i = 0; i < FEW; i++) {
                if (row + i >= a.m) continue;
#pragma unroll
                for (int e = 0; e < 8; e++) sum[n][i] = fmaf(x[i][e], w[e], sum[n][i]);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < EACH; n++)
#pragma unroll
        for (int i = 0; i < FEW; i++) parts[i][warp * EACH + n][lane] = sum[n][i];
    __syncthreads();
    if (warp < FEW && row + warp < a.m && column + lane < a.w.n) {
        float total = 0.0f;
        for (int p = 0; p < PARTS; p++) total += parts[warp][lane][p];
        finish(&a, row + warp, column + lane, total);
    }
}

/* Many rows: tiles of 64 rows and 64 outputs; a thread holds four by four of them, and walks the parts
 * one after another, four chunks at a time. Grid: n / 64, m / 64. */
#define TILE 64
#define DEPTH 32

KERNEL(product_many, ProductArgs) {
    __shared__ float xs[DEPTH][TILE + 4], ws[DEPTH][TILE + 4];
    prepare(&a.w);
    int thread = threadIdx.x, r = thread / 4, q = thread % 4;
    int i0 = thread / 16 * 4, n0 = thread % 16 * 4, chunks = (int)((a.w.k + 7) / 8);
    i64 column = (i64)blockIdx.x * TILE, row = (i64)blockIdx.y * TILE;
    float total[4][4], sum[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int n = 0; n < 4; n++) total[i][n] = 0.0f;
    for (int part = 0; part < PARTS && part < chunks; part++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int n = 0; n < 4; n++) sum[i][n] = 0.0f;
        for (int first = part; first < chunks; first += 4 * PARTS) {
            int chunk = first + q * PARTS;
            float w[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
            if (chunk < chunks && column + r < a.w.n) load8(&a.w, column + r, chunk, w);
            __syncthreads();
#pragma unroll
            for (int e = 0; e < 8; e++) {
                int at = chunk * 8 + e;
                int inside = at < a.w.k && row + r < a.m;
                xs[q * 8 + e][r] = inside ? a.x[(row + r) * a.x_width + at] : 0.0f;
                ws[q * 8 + e][r] = w[e];
            }
            __syncthreads();
            int left = (chunks - first + PARTS - 1) / PARTS;
            int depth = left < 4 ? left * 8 : DEPTH;
            for (int d = 0; d < depth; d++) {
                float x[4], v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    x[i] = xs[d][i0 + i];
                    v[i] = ws[d][n0 + i];
                }
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int n = 0; n < 4; n++) sum[i][n] = fmaf(x[i], v[n], sum[i][n]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int n = 0; n < 4; n++) total[i][n] += sum[i][n];
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int n = 0; n < 4; n++)
            if (row + i0 + i < a.m && column + n0 + n < a.w.n)
                finish(&a, row + i0 + i, column + n0 + n, total[i][n]);
}

/* dx (+)= alpha · dy[:, at..at+n] W: tiles of 64 rows and 64 columns of W; one chain over the rows of W.
 * Here x is dy and y is dx. Grid: k / 64, m / 64. */
KERNEL(product_transposed, ProductArgs) {
    __shared__ float gs[DEPTH][TILE + 4], ws[DEPTH][TILE + 4];
    prepare(&a.w);
    int thread = threadIdx.x, i0 = thread / 16 * 4, n0 = thread % 16 * 4;
    i64 column = (i64)blockIdx.x * TILE, row = (i64)blockIdx.y * TILE;
    int chunks = (int)((a.w.k + 7) / 8);
    float sum[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int n = 0; n < 4; n++) sum[i][n] = 0.0f;
    for (i64 first = 0; first < a.w.n; first += DEPTH) {
        int o = thread / 8, q = thread % 8, chunk = (int)(column / 8) + q;
        float w[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        if (first + o < a.w.n && chunk < chunks) load8(&a.w, first + o, chunk, w);
        __syncthreads();
#pragma unroll
        for (int e = 0; e < 8; e++) {
            ws[o][q * 8 + e] = w[e];
            int i = thread / 32 + 8 * e, mine = thread % 32;
            int inside = row + i < a.m && first + mine < a.w.n;
            gs[mine][i] = inside ? a.x[(row + i) * a.x_width + a.at + first + mine] : 0.0f;
        }
        __syncthreads();
        int depth = a.w.n - first < DEPTH ? (int)(a.w.n - first) : DEPTH;
        for (int d = 0; d < depth; d++) {
            float g[4], v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                g[i] = gs[d][i0 + i];
                v[i] = ws[d][n0 + i];
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int n = 0; n < 4; n++) sum[i][n] = fmaf(g[i], v[n], sum[i][n]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int n = 0; n < 4; n++) {
            if (row + i0 + i >= a.m || column + n0 + n >= a.w.k) continue;
            float *y = a.y + (row + i0 + i) * a.y_width + column + n0 + n;
            float value = (float)a.alpha * sum[i][n];
            *y = a.add ? *y + value : value;
        }
}

/* y[i] = scale · W[ids[i]]. Grid: chunks of all rows / THREADS. */
typedef struct {
    Weight w;
    const u32 *ids;
    i64 rows;
    double scale;
    float *y;
} EmbedArgs;

KERNEL(embed, EmbedArgs) {
    prepare(&a.w);
    i64 chunks = (a.w.k + 7) / 8, index = index_of();
    if (index >= a.rows * chunks) return;
    i64 row = index / chunks;
    int chunk = (int)(index % chunks);
    float w[8];
    load8(&a.w, a.ids ? (i64)a.ids[row] : row, chunk, w);
    for (int e = 0; e < 8; e++)
        if (chunk * 8 + e < a.w.k) a.y[row * a.w.k + chunk * 8 + e] = (float)a.scale * w[e];
}
