/* What lies between the MLP's projections. */

#define SILU 0
#define GELU 1
#define GELU_TANH 2
#define QUICK_GELU 3
#define RELU 4

DEVICE void activate(float x, int act, float *value, float *slope) {
    if (act == SILU || act == QUICK_GELU) {
        float steepness = act == SILU ? 1.0f : 1.702f;
        float sigmoid = 1.0f / (1.0f + expf(-steepness * x));
        *value = x * sigmoid;
        *slope = sigmoid * (1.0f + steepness * x * (1.0f - sigmoid));
    } else if (act == RELU) {
        *value = fmaxf(x, 0.0f);
        *slope = x > 0.0f ? 1.0f : 0.0f;
    } else if (act == GELU) {
        float phi = 0.5f * (1.0f + erff(x * 0.70710678118654752f));
        *value = x * phi;
        *slope = phi + x * expf(-0.5f * x * x) * 0.39894228040143268f;
    } else {
        const float c = 0.79788456080286536f;
        float th = tanhf(c * (x + 0.044715f * x * x * x));
        float inner = c * (1.0f + 3.0f * 0.044715f * x * x);
        *value = 0.5f * x * (1.0f + th);
        *slope = 0.5f * (1.0f + th) + 0.5f * x * (1.0f - th * th) * inner;
    }
}

/* u (t, ff) = act(gate) · up of [gate, up] (t, 2 ff), or act(up). */
typedef struct { const float *up; i64 rows, ff, gated, act; float *u; } InnerArgs;
KERNEL(mlp_inner, InnerArgs) {
    i64 i = index_of();
    if (i >= a.rows * a.ff) return;
    const float *up = a.up + i / a.ff * (a.gated ? 2 * a.ff : a.ff) + i % a.ff;
    float value, slope;
    activate(up[0], (int)a.act, &value, &slope);
    a.u[i] = a.gated ? value * up[a.ff] : value;
}

/* dgate = act'(gate) up du, dup = act(gate) du; or act'(up) du. */
typedef struct { const float *du, *up; i64 rows, ff, gated, act; float *dup; } InnerBackwardArgs;
KERNEL(mlp_inner_backward, InnerBackwardArgs) {
    i64 i = index_of();
    if (i >= a.rows * a.ff) return;
    i64 at = i / a.ff * (a.gated ? 2 * a.ff : a.ff) + i % a.ff;
    float value, slope, du = a.du[i];
    activate(a.up[at], (int)a.act, &value, &slope);
    a.dup[at] = slope * (a.gated ? a.up[at + a.ff] : 1.0f) * du;
    if (a.gated) a.dup[at + a.ff] = value * du;
}
