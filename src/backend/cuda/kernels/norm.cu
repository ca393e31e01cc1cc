/* RMSNorm and LayerNorm over whole rows, forward and backward; a block per row. */

typedef struct {
    const float *x;
    i64 rows, width;
    i64 centred;
    double eps;
    const float *weight, *bias;
    float *y;
} NormArgs;

/* Mean (0 unless centred) and reciprocal deviation of a row. */
DEVICE void moments(const float *x, i64 width, int centred, float eps, float *mean, float *rstd) {
    __shared__ float scratch[WARPS];
    float sum = 0.0f;
    if (centred)
        for (i64 c = threadIdx.x; c < width; c += THREADS) sum += x[c];
    *mean = centred ? block_sum(sum, scratch) / (float)width : 0.0f;
    float squares = 0.0f;
    for (i64 c = threadIdx.x; c < width; c += THREADS) {
        float off = x[c] - *mean;
        squares = fmaf(off, off, squares);
    }
    *rstd = 1.0f / sqrtf(block_sum(squares, scratch) / (float)width + eps);
}

/* y = (x − mean) rstd · w (+ b). Grid: rows. */
KERNEL(norm_forward, NormArgs) {
    const float *x = a.x + blockIdx.x * a.width;
    float *y = a.y + blockIdx.x * a.width, mean, rstd;
    moments(x, a.width, (int)a.centred, (float)a.eps, &mean, &rstd);
    for (i64 c = threadIdx.x; c < a.width; c += THREADS) {
        float value = (x[c] - mean) * rstd * a.weight[c];
        y[c] = a.bias ? value + a.bias[c] : value;
    }
}

/* With g = dy · w: dx += rstd (g − x̂ mean(g x̂)), for LayerNorm less rstd mean(g). Leaves mean and rstd
 * of every row for the gradients of the weights. Grid: rows. */
typedef struct {
    const float *dy, *x;
    i64 rows, width;
    i64 centred;
    double eps;
    const float *weight;
    float *dx, *stats;
} NormBackwardArgs;

KERNEL(norm_backward, NormBackwardArgs) {
    __shared__ float scratch[WARPS];
    const float *x = a.x + blockIdx.x * a.width, *dy = a.dy + blockIdx.x * a.width;
    float *dx = a.dx + blockIdx.x * a.width, mean, rstd;
    moments(x, a.width, (int)a.centred, (float)a.eps, &mean, &rstd);
    float sum = 0.0f, sum_x = 0.0f;
    for (i64 c = threadIdx.x; c < a.width; c += THREADS) {
        float g = dy[c] * a.weight[c];
        sum += g;
        sum_x = fmaf(g, (x[c] - mean) * rstd, sum_x);
    }
    float mean_g = a.centred ? block_sum(sum, scratch) / (float)a.width : 0.0f;
    float mean_gx = block_sum(sum_x, scratch) / (float)a.width;
    for (i64 c = threadIdx.x; c < a.width; c += THREADS) {
        float g = dy[c] * a.weight[c], x_hat = (x[c] - mean) * rstd;
        dx[c] += rstd * (g - mean_g - x_hat * mean_gx);
    }
    if (threadIdx.x == 0) {
        a.stats[2 * blockIdx.x] = mean;
        a.stats[2 * blockIdx.x + 1] = rstd;
    }
}

/* dw += Σ dy · x̂ and db += Σ dy over the rows in order; either may be absent. Grid: width / THREADS. */
typedef struct {
    const float *dy, *x, *stats;
    i64 rows, width;
    float *dweight, *dbias;
} NormGradientArgs;

KERNEL(norm_gradient, NormGradientArgs) {
    i64 c = index_of();
    if (c >= a.width) return;
    float dw = 0.0f, db = 0.0f;
    for (i64 row = 0; row < a.rows; row++) {
        float dy = a.dy[row * a.width + c];
        float x_hat = (a.x[row * a.width + c] - a.stats[2 * row]) * a.stats[2 * row + 1];
        dw = fmaf(dy, x_hat, dw);
        db += dy;
    }
    if (a.dweight) a.dweight[c] += dw;
    if (a.dbias) a.dbias[c] += db;
}
