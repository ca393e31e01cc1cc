/* A raw projection (t, (h + 2 kv) hd) into q, k and v: clip, split, norm of each head or of all
 * together, RoPE; and back.
 * A warp per head of a row. Grid: t · (h + 2 kv) / WARPS. */

typedef struct {
    const float *qkv;
    i64 rows, heads, kv_heads, head_dim;
    /* Infinite: no clip. */
    double clip;
    /* Of each kind: 0 none, 1 RMS, 2 layer; over so many values: those of a head, or of all heads. */
    i64 q_kind, k_kind, q_group, k_group;
    double q_eps, k_eps;
    const float *q_weight, *k_weight, *q_bias, *k_bias;
    /* Sets of so many frequencies as pairs. */
    const float *frequencies;
    i64 pairs;
    double rope_scale;
    const u32 *positions;
    /* Whose set each row turns by. */
    const u32 *sets;
    float *q, *k, *v;
} HeadsArgs;

typedef struct {
    i64 row;
    int head;
    /* 0 q, 1 k, 2 v. */
    int part;
    int kind;
    /* Values that are normed together, and which of them is this head's first. */
    int group, at;
    float eps;
    const float *weight, *bias;
    float *to;
} Head;

DEVICE Head head_of(const HeadsArgs *a, i64 index) {
    Head h;
    i64 all = a->heads + 2 * a->kv_heads;
    h.row = index / all;
    h.head = (int)(index % all);
    h.part = h.head < a->heads ? 0 : h.head < a->heads + a->kv_heads ? 1 : 2;
    i64 mine = h.head - (h.part == 0 ? 0 : h.part == 1 ? a->heads : a->heads + a->kv_heads);
    float *to = h.part == 0 ? a->q : h.part == 1 ? a->k : a->v;
    i64 width = (h.part == 0 ? a->heads : a->kv_heads) * a->head_dim;
    h.to = to + h.row * width + mine * a->head_dim;
    h.kind = h.part == 2 ? 0 : (int)(h.part == 0 ? a->q_kind : a->k_kind);
    h.group = (int)(h.part == 0 ? a->q_group : h.part == 1 ? a->k_group : a->head_dim);
    h.at = h.group == a->head_dim ? 0 : (int)(mine * a->head_dim);
    h.eps = (float)(h.part == 0 ? a->q_eps : a->k_eps);
    h.weight = h.part == 0 ? a->q_weight : a->k_weight;
    h.bias = h.part == 0 ? a->q_bias : a->k_bias;
    return h;
}

DEVICE float clipped(float x, double clip) {
    float limit = (float)clip;
    return fminf(fmaxf(x, -limit), limit);
}

/* Cosine and sine of the pair that value c of a head belongs to. */
DEVICE void turn_of(const HeadsArgs *a, i64 row, int c, float *sine, float *cosine) {
    int pair = c < a->pairs ? c : c - (int)a->pairs;
    float frequency = a->frequencies[a->sets[row] * a->pairs + pair];
    sincosf((float)a->positions[row] * frequency, sine, cosine);
    *sine *= (float)a->rope_scale;
    *cosine *= (float)a->rope_scale;
}

/* Mean and reciprocal deviation of the clipped values that are normed with those of a head, at x. */
DEVICE void head_moments(const HeadsArgs *a, const Head *h, const float *x, float *mean, float *rstd) {
    float sum = 0.0f, squares = 0.0f;
    x -= h->at;
    if (h->kind == 2)
        for (int c = lane_of(); c < h->group; c += 32) sum += clipped(x[c], a->clip);
    *mean = h->kind == 2 ? warp_sum(sum) / (float)h->group : 0.0f;
    for (int c = lane_of(); c < h->group; c += 32) {
        float off = clipped(x[c], a->clip) - *mean;
        squares = fmaf(off, off, squares);
    }
    *rstd = 1.0f / sqrtf(warp_sum(squares) / (float)h->group + h->eps);
}

DEVICE float head_value(const HeadsArgs *a, const Head *h, const float *x, int c, float mean, float rstd) {
    float value = clipped(x[c], a->clip);
    if (h->kind == 0) return value;
    value = (value - mean) * rstd * h->weight[h->at + c];
    return h->bias ? value + h->bias[h->at + c] : value;
}

KERNEL(heads, HeadsArgs) {
    i64 all = a.heads + 2 * a.kv_heads, index = (i64)blockIdx.x * WARPS + warp_of();
    if (index >= a.rows * all) return;
    Head h = head_of(&a, index);
    const float *x = a.qkv + (h.row * all + h.head) * a.head_dim;
    float mean = 0.0f, rstd = 1.0f;
    if (h.kind != 0) head_moments(&a, &h, x, &mean, &rstd);
    int pairs = h.part == 2 ? 0 : (int)a.pairs;
    for (int c = lane_of(); c < a.head_dim; c += 32) {
        float value = head_value(&a, &h, x, c, mean, rstd);
        if (c < 2 * pairs) {
            float sine, cosine;
            turn_of(&a, h.row, c, &sine, &cosine);
            float other = head_value(&a, &h, x, c < pairs ? c + pairs : c - pairs, mean, rstd);
            value = c < pairs ? value * cosine - other * sine : value * cosine + other * sine;
        }
        h.to[c] = value;
    }
}

/* The gradient at value i of those that are normed together, RoPE turned back, times the weight. */
DEVICE float head_gradient(const HeadsArgs *a, const Head *h, int i) {
    int c = i % (int)a->head_dim, pairs = h->part == 2 ? 0 : (int)a->pairs;
    const float *g = h->to + (i - h->at - c);
    float value = g[c];
    if (c < 2 * pairs) {
        float sine, cosine, other = g[c < pairs ? c + pairs : c - pairs];
        turn_of(a, h->row, c, &sine, &cosine);
        value = c < pairs ? value * cosine + other * sine : value * cosine - other * sine;
    }
    return h->kind != 0 ? value * h->weight[i] : value;
}

/* Top down: RoPE turned back, the norm at the clipped values, zero where the clip cut. Here q, k and v
 * are their gradients, and d is the gradient of the projection, overwritten. Heads that are normed
 * together each sum over all of them. */
typedef struct {
    HeadsArgs forward;
    float *d;
} HeadsBackwardArgs;

KERNEL(heads_backward, HeadsBackwardArgs) {
    const HeadsArgs *f = &a.forward;
    i64 all = f->heads + 2 * f->kv_heads, index = (i64)blockIdx.x * WARPS + warp_of();
    if (index >= f->rows * all) return;
    Head h = head_of(f, index);
    const float *x = f->qkv + (h.row * all + h.head) * f->head_dim;
    float *d = a.d + (h.row * all + h.head) * f->head_dim;
    float mean = 0.0f, rstd = 1.0f;
    if (h.kind != 0) head_moments(f, &h, x, &mean, &rstd);
    float sum = 0.0f, sum_x = 0.0f;
    for (int i = lane_of(); h.kind != 0 && i < h.group; i += 32) {
        float value = head_gradient(f, &h, i);
        sum += value;
        sum_x = fmaf(value, (clipped(x[i - h.at], f->clip) - mean) * rstd, sum_x);
    }
    float mean_g = 0.0f, mean_gx = 0.0f;
    if (h.kind == 2) mean_g = warp_sum(sum) / (float)h.group;
    if (h.kind != 0) mean_gx = warp_sum(sum_x) / (float)h.group;
    for (int c = lane_of(); c < f->head_dim; c += 32) {
        float value = head_gradient(f, &h, h.at + c);
        if (h.kind != 0) {
            float x_hat = (clipped(x[c], f->clip) - mean) * rstd;
            value = rstd * (value - mean_g - x_hat * mean_gx);
        }
        d[c] = fabsf(x[c]) <= (float)f->clip ? value : 0.0f;
    }
}
