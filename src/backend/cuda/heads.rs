//! A raw projection into q, k and v, and back.

use super::machine::WARPS;
use super::source::Module;
use super::{CudaBackend, CudaRows, float};
use crate::backend::{HeadsSpec, Norm, NormKind, Places};

/// Members of `HeadsArgs`.
const WORDS: usize = 24;

/// Kind (0: none), values normed together, epsilon, weight and bias of a norm of heads.
fn norm_words(norm: Option<&Norm<CudaRows>>, heads: usize, head_dim: usize) -> [u64; 5] {
    let Some(norm) = norm else { return [0, head_dim as u64, 0, 0, 0] };
    let group = norm.weight.len();
    assert!(
        [head_dim, heads * head_dim].contains(&group),
        "a weight per value of a head, or of all"
    );
    let kind = match norm.kind {
        NormKind::Rms => 1,
        NormKind::Layer => 2,
    };
    let bias = norm.bias.as_ref().map_or(0, CudaRows::at);
    [kind, group as u64, float(norm.eps), norm.weight.at(), bias]
}

impl CudaBackend {
    /// What both directions take; `parts` are q, k and v, or their gradients.
    fn head_words(
        &self,
        qkv: &CudaRows,
        spec: &HeadsSpec<CudaRows>,
        places: &Places,
        parts: [&CudaRows; 3],
    ) -> [u64; WORDS] {
        let &HeadsSpec { heads, kv_heads, head_dim, .. } = spec;
        let t = places.positions.len();
        assert_eq!((qkv.rows, qkv.width), (t, (heads + 2 * kv_heads) * head_dim));
        for (part, heads) in parts.into_iter().zip([heads, kv_heads, kv_heads]) {
            assert_eq!((part.rows, part.width), (t, heads * head_dim), "a part has all its heads");
        }
        let [q_kind, q_group, q_eps, q_weight, q_bias] =
            norm_words(spec.q_norm.as_ref(), heads, head_dim);
        let [k_kind, k_group, k_eps, k_weight, k_bias] =
            norm_words(spec.k_norm.as_ref(), kv_heads, head_dim);
        let pairs = spec.rope.pairs();
        assert!(2 * pairs <= head_dim, "a head has two values per frequency");
        let (frequencies, sets) = spec.rope.sets(places);
        let frequencies = if pairs == 0 { 0 } else { self.table(&frequencies) };
        let [q, k, v] = parts.map(CudaRows::at);
        let clip = float(spec.clip.unwrap_or(f32::INFINITY));
        let shape = [t, heads, kv_heads, head_dim].map(|count| count as u64);
        let groups = [q_kind, k_kind, q_group, k_group];
        let norms = [q_eps, k_eps, q_weight, k_weight, q_bias, k_bias];
        let [positions, sets] = [&places.positions, &sets].map(|rows| self.table(rows));
        let rope = [frequencies, pairs as u64, float(spec.rope.scale), positions, sets];
        let words = [&[qkv.at()][..], &shape, &[clip], &groups, &norms, &rope, &[q, k, v]].concat();
        words.try_into().expect("as many as the kernel's struct has members")
    }

    /// See [`Backend::heads`](crate::backend::Backend::heads).
    pub(super) fn split_heads(
        &self,
        qkv: &CudaRows,
        spec: &HeadsSpec<CudaRows>,
        places: &Places,
        parts: [&CudaRows; 3],
    ) {
        let args = self.head_words(qkv, spec, places, parts);
        self.launch(Module::Heads, "heads", [warps(spec, qkv.rows), 1], &args);
    }

    /// See [`Backend::heads_backward`](crate::backend::Backend::heads_backward); `parts` are the
    /// gradients of q, k and v.
    pub(super) fn join_heads(
        &self,
        parts: [&CudaRows; 3],
        qkv: &CudaRows,
        spec: &HeadsSpec<CudaRows>,
        places: &Places,
        dqkv: &CudaRows,
    ) {
        assert_eq!((dqkv.rows, dqkv.width), (qkv.rows, qkv.width), "a gradient has its shape");
        let words = self.head_words(qkv, spec, places, parts);
        let args = [&words[..], &[dqkv.at()]].concat();
        self.launch(Module::Heads, "heads_backward", [warps(spec, qkv.rows), 1], &args);
    }
}

/// Blocks with a warp per head of a row.
fn warps(spec: &HeadsSpec<CudaRows>, t: usize) -> usize {
    (t * (spec.heads + 2 * spec.kv_heads)).div_ceil(WARPS)
}
