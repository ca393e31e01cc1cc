/* What the kernels of attention share: who attends, to whom, and how a score is formed.
 *
 * A query vector is one head of one row. Those that read the same key-value head lie side by side: with
 * g heads per key-value head, vector i of a sequence is head i % g of its row i / g. A block takes the
 * vectors of one key-value head that its warps can hold, one each. Keys are walked in tiles of 32
 * positions from the first on, whatever the batch. */

#define TILE 32
#define MOST_HEAD_DIM 256
/* Values of a head that one lane holds. */
#define LANE_VALUES (MOST_HEAD_DIM / 32)

typedef struct {
    i64 heads, kv_heads, head_dim;
    double scale;
    /* 0: none. */
    double softcap;
    i64 window;
    const float *alibi;
    i64 causal;
} Attention;

/* The vectors of one block. */
typedef struct {
    /* The sequence's first row; its vectors; the first of this block. */
    u32 row, vectors, first;
    /* Position of that row. */
    u32 start;
    /* Where the sequence's keys are: its blocks begin here in the table, or its rows. */
    u32 base;
    /* The segment of keys to read, or ALL. */
    u32 segment;
} Work;

#define ALL 0xffffffffu

/* One warp's vector. */
typedef struct {
    int head;
    i64 row;
    /* The positions it sees, both included; none if last < first. */
    int position, first, last;
} Query;

DEVICE Query query_of(const Attention *a, const Work *w, int kv_head, u32 vector) {
    Query q;
    int group = (int)(a->heads / a->kv_heads);
    q.head = kv_head * group + (int)vector % group;
    q.row = w->row + (i64)vector / group;
    q.position = (int)(w->start + vector / group);
    q.last = a->causal ? q.position : (int)(w->vectors / group) - 1;
    q.first = a->window && q.position + 1 > (int)a->window ? q.position + 1 - (int)a->window : 0;
    return q;
}

/* The score of a query and a key, and its derivative by their product. */
DEVICE float score(const Attention *a, float product, int head, int distance, float *slope) {
    float score = product * (float)a->scale;
    *slope = (float)a->scale;
    if (a->softcap > 0.0) {
        float cap = (float)a->softcap, th = tanhf(score / cap);
        score = cap * th;
        *slope = (float)a->scale * (1.0f - th * th);
    }
    if (a->alibi) score = score - a->alibi[head] * (float)distance;
    return score;
}

DEVICE float dot(const float *x, const float *y, int count) {
    float sum = 0.0f;
#pragma unroll 4
    for (int c = 0; c < count; c++) sum = fmaf(x[c], y[c], sum);
    return sum;
}
