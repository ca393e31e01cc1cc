/* Gradients of weights: sums over rows, in the order of the rows. */

#define TILE 64
#define DEPTH 32

/* dw (n, k) += alpha · dy[:, at..at+n]ᵀ x, in tiles of 64 by 64. Grid: k / 64, n / 64. */
typedef struct {
    const float *dy;
    i64 rows, dy_width, at, n;
    const float *x;
    i64 k;
    double alpha;
    float *dw;
} GradientArgs;

KERNEL(weight_gradient, GradientArgs) {
    __shared__ float gs[DEPTH][TILE], xs[DEPTH][TILE];
    int thread = threadIdx.x, n0 = thread / 16 * 4, k0 = thread % 16 * 4;
    i64 column = (i64)blockIdx.x * TILE, out = (i64)blockIdx.y * TILE;
    float sum[4][4];
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int k = 0; k < 4; k++) sum[n][k] = 0.0f;
    for (i64 first = 0; first < a.rows; first += DEPTH) {
        __syncthreads();
#pragma unroll
        for (int e = 0; e < 8; e++) {
            int i = thread / 64 + 4 * e, c = thread % 64;
            int inside = first + i < a.rows;
            gs[i][c] = inside && out + c < a.n ? a.dy[(first + i) * a.dy_width + a.at + out + c] : 0.0f;
            xs[i][c] = inside && column + c < a.k ? a.x[(first + i) * a.k + column + c] : 0.0f;
        }
        __syncthreads();
        int depth = a.rows - first < DEPTH ? (int)(a.rows - first) : DEPTH;
        for (int d = 0; d < depth; d++) {
            float g[4], x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                g[i] = gs[d][n0 + i];
                x[i] = xs[d][k0 + i];
            }
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int k = 0; k < 4; k++) sum[n][k] = fmaf(g[n], x[k], sum[n][k]);
        }
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (out + n0 + n < a.n && column + k0 + k < a.k)
                a.dw[(out + n0 + n) * a.k + column + k0 + k] += (float)a.alpha * sum[n][k];
}

/* db += Σ dy[:, at..at+n]. Grid: n / THREADS. */
typedef struct { const float *dy; i64 rows, dy_width, at, n; float *db; } BiasArgs;
KERNEL(bias_gradient, BiasArgs) {
    i64 o = index_of();
    if (o >= a.n) return;
    float sum = 0.0f;
    for (i64 row = 0; row < a.rows; row++) sum += a.dy[row * a.dy_width + a.at + o];
    a.db[o] += sum;
}
