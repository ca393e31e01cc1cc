/* Adapters over a batch: y[row, at..] += scale · (x[row] Aᵀ) Bᵀ for every row and adapter of a list, in
 * two launches however many adapters there are; each costs by its own rank. */

typedef struct {
    const float *a, *b;
    i64 row, rank, out, at;
    /* Where this entry's inner values lie in z. */
    i64 z;
    double scale;
} Entry;

typedef struct {
    const Entry *entries;
    i64 count;
    const float *x;
    i64 k;
    float *z, *y;
    i64 y_width;
} LowRankArgs;

/* z = x Aᵀ; a warp per inner value. Grid: entries, the largest rank / WARPS. */
KERNEL(low_rank_down, LowRankArgs) {
    const Entry *e = &a.entries[blockIdx.x];
    i64 r = (i64)blockIdx.y * WARPS + warp_of();
    if (r >= e->rank) return;
    const float *x = a.x + e->row * a.k, *row = e->a + r * a.k;
    float sum = 0.0f;
    for (i64 c = lane_of(); c < a.k; c += 32) sum = fmaf(x[c], row[c], sum);
    sum = warp_sum(sum);
    if (lane_of() == 0) a.z[e->z + r] = sum;
}

/* y += scale · z Bᵀ; a thread per output. Grid: entries, the largest out / THREADS. */
KERNEL(low_rank_up, LowRankArgs) {
    const Entry *e = &a.entries[blockIdx.x];
    i64 o = (i64)blockIdx.y * THREADS + threadIdx.x;
    if (o >= e->out) return;
    const float *b = e->b + o * e->rank, *z = a.z + e->z;
    float sum = 0.0f;
    for (i64 r = 0; r < e->rank; r++) sum = fmaf(z[r], b[r], sum);
    a.y[e->row * a.y_width + e->at + o] += (float)e->scale * sum;
}
