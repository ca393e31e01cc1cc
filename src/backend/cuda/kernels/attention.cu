/* Attention over the cache or within spans, forward; and the cache. KV says how keys and values lie:
 * f32, bf16, or int8 with a scale per head.
 *
 * Keys are read in segments of SEGMENT positions. Each yields a maximum, a sum of weights and a weighted
 * sum of values; these are merged in the order of the segments, in one block or, where few vectors read
 * many keys, by attention_merge over what one block per segment left. A row has the same bits either way.
 * Dao et al. 2022, "FlashAttention", algorithm 1. */

#define KV_F32 0
#define KV_BF16 1
#define KV_INT8 2

#define SEGMENT 256
#define BLOCK_TOKENS 16

typedef struct {
    Attention spec;
    const float *q;
    const void *keys, *values;
    const float *key_scales, *value_scales;
    /* Blocks of all sequences, or absent: keys and values are rows. */
    const u32 *blocks;
    const Work *work;
    /* Per work item, key-value head and warp: maximum, sum, values. */
    float *partials;
    float *o, *lse;
} AttentionArgs;

/* The token's place among those of a layer. */
DEVICE i64 slot_of(const AttentionArgs *a, const Work *w, int position) {
    if (!a->blocks) return (i64)w->base + position;
    return (i64)a->blocks[w->base + position / BLOCK_TOKENS] * 2 * BLOCK_TOKENS + position % BLOCK_TOKENS;
}

/* One value of a key or value head. */
DEVICE float held(const void *from, const float *scales, i64 head, int head_dim, int c) {
#if KV == KV_F32
    (void)scales;
    return ((const float *)from)[head * head_dim + c];
#elif KV == KV_BF16
    (void)scales;
    return bf16_to_float(((const u16 *)from)[head * head_dim + c]);
#else
    return (float)((const i8 *)from)[head * head_dim + c] * scales[head];
#endif
}

/* Brings the keys or values of a tile to the block, zeros beyond the last position. */
DEVICE void load_tile(const AttentionArgs *a, const Work *w, int kv_head, int start, int last,
                      const void *from, const float *scales, float *tile) {
    int hd = (int)a->spec.head_dim;
    for (int i = threadIdx.x; i < TILE * hd; i += THREADS) {
        int position = start + i / hd, c = i % hd;
        float value = 0.0f;
        if (position <= last) {
            i64 head = slot_of(a, w, position) * a->spec.kv_heads + kv_head;
            value = held(from, scales, head, hd, c);
        }
        tile[i / hd * (hd + 1) + c] = value;
    }
}

typedef struct {
    float largest, sum, values[LANE_VALUES];
} State;

DEVICE void begin(State *s) {
    s->largest = -INFINITY;
    s->sum = 0.0f;
#pragma unroll
    for (int c = 0; c < LANE_VALUES; c++) s->values[c] = 0.0f;
}

/* Adds what a later segment found. */
DEVICE void merge(State *s, const State *later) {
    if (later->sum == 0.0f) return;
    float largest = fmaxf(s->largest, later->largest);
    float old = expf(s->largest - largest), fresh = expf(later->largest - largest);
    s->sum = fmaf(s->sum, old, later->sum * fresh);
#pragma unroll
    for (int c = 0; c < LANE_VALUES; c++)
        s->values[c] = fmaf(s->values[c], old, later->values[c] * fresh);
    s->largest = largest;
}

DEVICE void write_out(const AttentionArgs *a, const Query *q, const State *s) {
    int hd = (int)a->spec.head_dim;
    float *o = a->o + (q->row * a->spec.heads + q->head) * hd;
#pragma unroll
    for (int c = 0; c < LANE_VALUES; c++)
        if (c * 32 + lane_of() < hd) o[c * 32 + lane_of()] = s->values[c] / s->sum;
    if (a->lse && lane_of() == 0) a->lse[q->row * a->spec.heads + q->head] = s->largest + logf(s->sum);
}

/* Grid: work items, key-value heads. */
KERNEL(attention, AttentionArgs) {
    __shared__ float tile[TILE * (MOST_HEAD_DIM + 1)], queries[WARPS][MOST_HEAD_DIM], weights[WARPS][TILE];
    const Work w = a.work[blockIdx.x];
    int hd = (int)a.spec.head_dim, kv_head = blockIdx.y, lane = lane_of(), warp = warp_of();
    u32 end = w.first + WARPS < w.vectors ? w.first + WARPS : w.vectors;
    int present = w.first + warp < end;
    Query mine = query_of(&a.spec, &w, kv_head, present ? w.first + warp : w.first);
    int first = query_of(&a.spec, &w, kv_head, w.first).first;
    int last = query_of(&a.spec, &w, kv_head, end - 1).last;
    for (int c = lane; c < hd; c += 32)
        queries[warp][c] = a.q[(mine.row * a.spec.heads + mine.head) * hd + c];

    State all, s;
    begin(&all);
    int from = w.segment == ALL ? first / SEGMENT : (int)w.segment;
    int to = w.segment == ALL ? last / SEGMENT : (int)w.segment;
    for (int segment = from; segment <= to; segment++) {
        begin(&s);
        for (int start = segment * SEGMENT; start < (segment + 1) * SEGMENT && start <= last; start += TILE) {
            if (start + TILE <= first) continue;
            int seen = present && start <= mine.last && start + TILE > mine.first;
            float grown = 1.0f;
            __syncthreads();
            load_tile(&a, &w, kv_head, start, last, a.keys, a.key_scales, tile);
            __syncthreads();
            if (seen) {
                int position = start + lane;
                float slope, x = -INFINITY;
                if (position >= mine.first && position <= mine.last) {
                    float product = dot(queries[warp], tile + lane * (hd + 1), hd);
                    x = score(&a.spec, product, mine.head, mine.position - position, &slope);
                }
                float largest = fmaxf(s.largest, warp_max(x));
                float p = expf(x - largest);
                grown = expf(s.largest - largest);
                s.sum = fmaf(s.sum, grown, warp_sum(p));
                s.largest = largest;
                weights[warp][lane] = p;
            }
            __syncthreads();
            load_tile(&a, &w, kv_head, start, last, a.values, a.value_scales, tile);
            __syncthreads();
            if (!seen) continue;
#pragma unroll
            for (int c = 0; c < LANE_VALUES; c++) {
                int at = c * 32 + lane;
                if (at >= hd) continue;
                float sum = s.values[c] * grown;
#pragma unroll 4
                for (int j = 0; j < TILE; j++) sum = fmaf(weights[warp][j], tile[j * (hd + 1) + at], sum);
                s.values[c] = sum;
            }
        }
        merge(&all, &s);
    }
    if (!present) return;
    if (w.segment == ALL) {
        write_out(&a, &mine, &all);
        return;
    }
    float *to_merge = a.partials + (((i64)blockIdx.x * a.spec.kv_heads + kv_head) * WARPS + warp) * (hd + 2);
    if (lane == 0) {
        to_merge[0] = s.largest;
        to_merge[1] = s.sum;
    }
#pragma unroll
    for (int c = 0; c < LANE_VALUES; c++)
        if (c * 32 + lane < hd) to_merge[2 + c * 32 + lane] = s.values[c];
}

/* Merges runs of work items that differ in their segments alone: [first item, items]. Grid: runs,
 * key-value heads. */
typedef struct {
    AttentionArgs attention;
    const u32 *runs;
} MergeArgs;

KERNEL(attention_merge, MergeArgs) {
    const AttentionArgs *of = &a.attention;
    u32 item = a.runs[2 * blockIdx.x], items = a.runs[2 * blockIdx.x + 1];
    int hd = (int)of->spec.head_dim, kv_head = blockIdx.y, lane = lane_of(), warp = warp_of();
    const Work w = of->work[item];
    if (w.first + warp >= w.vectors) return;
    Query mine = query_of(&of->spec, &w, kv_head, w.first + warp);
    State all, s;
    begin(&all);
    for (u32 i = item; i < item + items; i++) {
        const float *from = of->partials + (((i64)i * of->spec.kv_heads + kv_head) * WARPS + warp) * (hd + 2);
        begin(&s);
        s.largest = from[0];
        s.sum = from[1];
#pragma unroll
        for (int c = 0; c < LANE_VALUES; c++)
            if (c * 32 + lane < hd) s.values[c] = from[2 + c * 32 + lane];
        merge(&all, &s);
    }
    write_out(of, &mine, &all);
}

/* Writes the rows of k and v (t, kv · hd) to their slots; a warp per head. Grid: t · kv / WARPS, 2. */
typedef struct {
    const float *k, *v;
    i64 rows, kv_heads, head_dim;
    const u32 *slots;
    void *keys, *values;
    float *key_scales, *value_scales;
} WriteArgs;

KERNEL(write_cache, WriteArgs) {
    i64 index = (i64)blockIdx.x * WARPS + warp_of();
    if (index >= a.rows * a.kv_heads) return;
    i64 row = index / a.kv_heads, head = index % a.kv_heads;
    if (a.slots[row] == ALL) return;
    int hd = (int)a.head_dim, values = blockIdx.y;
    const float *from = (values ? a.v : a.k) + index * hd;
    i64 to = (i64)a.slots[row] * a.kv_heads + head;
#if KV == KV_INT8
    float largest = 0.0f;
    for (int c = lane_of(); c < hd; c += 32) largest = fmaxf(largest, fabsf(from[c]));
    float scale = warp_max(largest) / 127.0f;
    for (int c = lane_of(); c < hd; c += 32)
        ((i8 *)(values ? a.values : a.keys))[to * hd + c] = scale > 0.0f ? (i8)rintf(from[c] / scale) : 0;
    if (lane_of() == 0) (values ? a.value_scales : a.key_scales)[to] = scale;
#else
    for (int c = lane_of(); c < hd; c += 32) {
#if KV == KV_BF16
        ((u16 *)(values ? a.values : a.keys))[to * hd + c] = float_to_bf16(from[c]);
#else
        ((float *)(values ? a.values : a.keys))[to * hd + c] = from[c];
#endif
    }
#endif
}
