/* The backward of attention within spans, without a (t, t) buffer: scores are formed anew from lse.
 * Dao et al. 2022, "FlashAttention", algorithm 4: with P = exp(S − lse) and delta = Σ do · o,
 * dv += P do, dS = P (do · v − delta), dq += slope dS k, dk += slope dS q. */

typedef struct {
    Attention spec;
    const float *q, *k, *v, *o, *lse, *d_o;
    i64 rows;
    const Work *work;
    float *delta;
    float *dq, *dk, *dv;
} BackwardArgs;

/* delta (t, h); a warp per vector. Grid: t · h / WARPS. */
KERNEL(attention_delta, BackwardArgs) {
    i64 index = (i64)blockIdx.x * WARPS + warp_of(), hd = a.spec.head_dim;
    if (index >= a.rows * a.spec.heads) return;
    float sum = 0.0f;
    for (i64 c = lane_of(); c < hd; c += 32) sum = fmaf(a.d_o[index * hd + c], a.o[index * hd + c], sum);
    sum = warp_sum(sum);
    if (lane_of() == 0) a.delta[index] = sum;
}

/* Rows start .. start + TILE of a matrix of width · hd columns, one head of each. */
DEVICE void load_rows(const float *from, i64 row, int count, i64 heads, int head, int hd, float *tile) {
    for (int i = threadIdx.x; i < TILE * hd; i += THREADS) {
        int r = i / hd, c = i % hd;
        tile[r * (hd + 1) + c] = r < count ? from[((row + r) * heads + head) * hd + c] : 0.0f;
    }
}

/* dq; a warp per query vector. Grid: work items, key-value heads. */
KERNEL(attention_dq, BackwardArgs) {
    __shared__ float tile[TILE * (MOST_HEAD_DIM + 1)], queries[WARPS][MOST_HEAD_DIM], slopes[WARPS][TILE];
    const Work w = a.work[blockIdx.x];
    int hd = (int)a.spec.head_dim, kv_head = blockIdx.y, lane = lane_of(), warp = warp_of();
    u32 end = w.first + WARPS < w.vectors ? w.first + WARPS : w.vectors;
    int present = w.first + warp < end;
    Query mine = query_of(&a.spec, &w, kv_head, present ? w.first + warp : w.first);
    int first = query_of(&a.spec, &w, kv_head, w.first).first;
    int last = query_of(&a.spec, &w, kv_head, end - 1).last;
    i64 vector = mine.row * a.spec.heads + mine.head;
    for (int c = lane; c < hd; c += 32) queries[warp][c] = a.q[vector * hd + c];
    float lse = a.lse[vector], delta = a.delta[vector], dq[LANE_VALUES];
#pragma unroll
    for (int c = 0; c < LANE_VALUES; c++) dq[c] = 0.0f;
    for (int start = first / TILE * TILE; start <= last; start += TILE) {
        int position = start + lane, seen = position >= mine.first && position <= mine.last;
        int count = last + 1 - start;
        float d = 0.0f;
        __syncthreads();
        load_rows(a.v, w.base + start, count, a.spec.kv_heads, kv_head, hd, tile);
        __syncthreads();
        if (seen) d = dot(a.d_o + vector * hd, tile + lane * (hd + 1), hd) - delta;
        __syncthreads();
        load_rows(a.k, w.base + start, count, a.spec.kv_heads, kv_head, hd, tile);
        __syncthreads();
        float slope = 0.0f, ds = 0.0f;
        if (seen) {
            float product = dot(queries[warp], tile + lane * (hd + 1), hd);
            float s = score(&a.spec, product, mine.head, mine.position - position, &slope);
            ds = expf(s - lse) * d * slope;
        }
        slopes[warp][lane] = ds;
        __syncthreads();
#pragma unroll
        for (int c = 0; c < LANE_VALUES; c++) {
            int at = c * 32 + lane;
            if (at >= hd) continue;
#pragma unroll 4
            for (int j = 0; j < TILE; j++) dq[c] = fmaf(slopes[warp][j], tile[j * (hd + 1) + at], dq[c]);
        }
    }
    if (!present) return;
#pragma unroll
    for (int c = 0; c < LANE_VALUES; c++)
        if (c * 32 + lane < hd) a.dq[vector * hd + c * 32 + lane] = dq[c];
}

/* dk and dv; a warp per key, which walks the heads that read it, and the rows that see it in tiles. Here
 * vectors are keys. Grid: work items, key-value heads. */
KERNEL(attention_dkv, BackwardArgs) {
    __shared__ float tile[TILE * (MOST_HEAD_DIM + 1)], keys[WARPS][MOST_HEAD_DIM];
    __shared__ float weights[WARPS][TILE], slopes[WARPS][TILE];
    const Work w = a.work[blockIdx.x];
    int hd = (int)a.spec.head_dim, kv_head = blockIdx.y, lane = lane_of(), warp = warp_of();
    int group = (int)(a.spec.heads / a.spec.kv_heads), window = (int)a.spec.window;
    int present = w.first + warp < w.vectors, key = (int)w.first + (present ? warp : 0);
    i64 vector = ((i64)w.row + key) * a.spec.kv_heads + kv_head;
    for (int c = lane; c < hd; c += 32) keys[warp][c] = a.k[vector * hd + c];
    float dk[LANE_VALUES], dv[LANE_VALUES];
#pragma unroll
    for (int c = 0; c < LANE_VALUES; c++) dk[c] = dv[c] = 0.0f;
    /* The last row that sees any key of this block. */
    int last = (int)w.vectors - 1;
    if (window && (int)w.first + WARPS - 1 + window - 1 < last) last = (int)w.first + WARPS - 1 + window - 1;
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        for (int start = (int)w.first / TILE * TILE; start <= last; start += TILE) {
            int position = start + lane, count = (int)w.vectors - start;
            int seen = position >= key && position < (int)w.vectors && (!window || position < key + window);
            i64 query = ((i64)w.row + position) * a.spec.heads + head;
            float p = 0.0f, slope = 0.0f, ds = 0.0f;
            __syncthreads();
            load_rows(a.q, (i64)w.row + start, count, a.spec.heads, head, hd, tile);
            __syncthreads();
            if (seen) {
                float product = dot(keys[warp], tile + lane * (hd + 1), hd);
                p = expf(score(&a.spec, product, head, position - key, &slope) - a.lse[query]);
            }
            __syncthreads();
            load_rows(a.d_o, (i64)w.row + start, count, a.spec.heads, head, hd, tile);
            __syncthreads();
            if (seen) ds = p * (dot(a.v + vector * hd, tile + lane * (hd + 1), hd) - a.delta[query]) * slope;
            weights[warp][lane] = p;
            slopes[warp][lane] = ds;
            __syncthreads();
#pragma unroll
            for (int c = 0; c < LANE_VALUES; c++) {
                int at = c * 32 + lane;
                if (at >= hd) continue;
#pragma unroll 4
                for (int j = 0; j < TILE; j++) dv[c] = fmaf(weights[warp][j], tile[j * (hd + 1) + at], dv[c]);
            }
            __syncthreads();
            load_rows(a.q, (i64)w.row + start, count, a.spec.heads, head, hd, tile);
            __syncthreads();
#pragma unroll
            for (int c = 0; c < LANE_VALUES; c++) {
                int at = c * 32 + lane;
                if (at >= hd) continue;
#pragma unroll 4
                for (int j = 0; j < TILE; j++) dk[c] = fmaf(slopes[warp][j], tile[j * (hd + 1) + at], dk[c]);
            }
        }
    }
    if (!present) return;
#pragma unroll
    for (int c = 0; c < LANE_VALUES; c++) {
        if (c * 32 + lane >= hd) continue;
        a.dk[vector * hd + c * 32 + lane] = dk[c];
        a.dv[vector * hd + c * 32 + lane] = dv[c];
    }
}
