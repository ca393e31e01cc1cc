//! What GGUF calls the tensors of a decoder, and the order of rows it puts them in.

use super::super::config::DecoderConfig;

/// GGUF's name for the tensor that Hugging Face calls `name`: one name per role, in every family.
pub fn stored_name(config: &DecoderConfig, name: &str) -> Option<String> {
    let names = &config.names;
    let (stem, kind) = name.rsplit_once('.')?;
    if stem == names.head {
        return Some(format!("output.{kind}"));
    }
    let rest = stem.strip_prefix(names.prefix)?;
    if let Some(block) = rest.strip_prefix(names.layer).and_then(|rest| rest.strip_prefix('.')) {
        let (index, part) = block.split_once('.')?;
        return Some(format!("blk.{index}.{}.{kind}", block_role(config, part)?));
    }
    let role = match rest {
        rest if rest == names.embedding => "token_embd",
        rest if Some(rest) == names.positions => "position_embd",
        rest if rest == names.final_norm => "output_norm",
        _ => return None,
    };
    Some(format!("{role}.{kind}"))
}

fn block_role(config: &DecoderConfig, part: &str) -> Option<&'static str> {
    let names = &config.names;
    let qkv: &[&str] =
        if names.qkv.len() == 1 { &["attn_qkv"] } else { &["attn_q", "attn_k", "attn_v"] };
    let up: &[&str] = if names.up.len() == 1 { &["ffn_up"] } else { &["ffn_gate", "ffn_up"] };
    let qk_norm = names.qk_norm.iter().flatten().copied().zip(["attn_q_norm", "attn_k_norm"]);
    let linears = names.qkv.iter().zip(qkv).chain(names.up.iter().zip(up));
    linears
        .map(|(linear, role)| (linear.name, *role))
        .chain(qk_norm)
        .chain([
            (names.input_norm, "attn_norm"),
            (names.o.name, "attn_output"),
            (names.mlp_norm, "ffn_norm"),
            (names.down.name, "ffn_down"),
        ])
        .chain(names.post_attention_norm.map(|name| (name, "post_attention_norm")))
        .chain(names.post_mlp_norm.map(|name| (name, "post_ffw_norm")))
        .find(|(name, _)| *name == part)
        .map(|(_, role)| role)
}

/// How many heads the tensor that GGUF calls `name` has, if their halves are interleaved there:
/// the q and k projections of its `llama` architecture, which turns neighbouring pairs.
pub fn interleaved_heads(config: &DecoderConfig, name: &str) -> Option<usize> {
    if !matches!(config.family.as_str(), "llama" | "mistral") {
        return None;
    }
    let (stem, _) = name.rsplit_once('.')?;
    match stem.rsplit_once('.')?.1 {
        "attn_q" => Some(config.heads),
        "attn_k" => Some(config.kv_heads),
        _ => None,
    }
}

/// Rows `2i + s` of each head to rows `s · hd/2 + i` of `into`: from pairs to halves.
pub fn split_halves(bytes: &[u8], rows: usize, heads: usize, into: &mut [u8]) {
    reorder(bytes, (rows, heads), into, |half, row| 2 * (row % half) + row / half);
}

/// The way back: from halves to pairs.
pub fn interleave_halves(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let mut into = vec![0; bytes.len()];
    reorder(bytes, (rows, heads), &mut into, |half, row| row / 2 + half * (row % 2));
    into
}

/// Row `row` of each head from row `from(hd / 2, row)`. Rows of blocks move as they are.
fn reorder(
    bytes: &[u8],
    (rows, heads): (usize, usize),
    into: &mut [u8],
    from: impl Fn(usize, usize) -> usize,
) {
    let (width, size) = (bytes.len() / rows, rows / heads);
    for (row, into) in into.chunks_exact_mut(width).enumerate() {
        let source = row / size * size + from(size / 2, row % size);
        into.copy_from_slice(&bytes[source * width..(source + 1) * width]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_halves_and_halves_pairs() {
        let pairs = [0, 10, 1, 11, 2, 12, 20, 30, 21, 31, 22, 32];
        let halves = [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32];
        let mut found = [0; 12];
        split_halves(&pairs, 12, 2, &mut found);
        assert_eq!(found, halves);
        assert_eq!(interleave_halves(&halves, 12, 2), pairs);
    }
}
