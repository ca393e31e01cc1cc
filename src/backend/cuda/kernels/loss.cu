/* Cross-entropy of rows of logits, and over them its gradient; a block per row. */

typedef struct {
    float *z;
    i64 rows, width;
    const u32 *labels;
    double weight;
    /* Per row: −log p(label), and whether the likeliest token is the label. */
    float *losses;
} LossArgs;

#define IGNORED 0xffffffffu

KERNEL(cross_entropy, LossArgs) {
    __shared__ float scratch[WARPS];
    float *z = a.z + blockIdx.x * a.width, largest = -INFINITY, total = 0.0f;
    u32 label = a.labels[blockIdx.x];
    if (label == IGNORED) {
        for (i64 c = threadIdx.x; c < a.width; c += THREADS) z[c] = 0.0f;
        if (threadIdx.x == 0) a.losses[2 * blockIdx.x] = a.losses[2 * blockIdx.x + 1] = 0.0f;
        return;
    }
    for (i64 c = threadIdx.x; c < a.width; c += THREADS) largest = fmaxf(largest, z[c]);
    largest = block_max(largest, scratch);
    /* Whether a token before the label is as likely as any. */
    float earlier = 0.0f, mine = z[label];
    for (i64 c = threadIdx.x; c < a.width; c += THREADS) {
        total += expf(z[c] - largest);
        if (c < label && z[c] == largest) earlier = 1.0f;
    }
    total = block_sum(total, scratch);
    earlier = block_max(earlier, scratch);
    for (i64 c = threadIdx.x; c < a.width; c += THREADS) {
        float p = expf(z[c] - largest) / total;
        z[c] = (float)a.weight * (p - (c == label ? 1.0f : 0.0f));
    }
    if (threadIdx.x == 0) {
        a.losses[2 * blockIdx.x] = logf(total) - (mine - largest);
        a.losses[2 * blockIdx.x + 1] = mine == largest && earlier == 0.0f ? 1.0f : 0.0f;
    }
}
