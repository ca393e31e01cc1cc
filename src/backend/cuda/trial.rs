//! The first thing a GPU does for us: a little of everything, held to the plain twin. A driver, a
//! compiler or a device that computes wrong is found before it serves anybody.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::CudaBackend;
use crate::backend::reference::ReferenceBackend;
use crate::backend::{
    Activation, AttentionSpec, BLOCK_TOKENS, Backend, CacheShape, HeadsSpec, HostWeight, KvFormat,
    Norm, NormKind, Places, Rope, SequenceRows, WeightFormat,
};

/// Relative to the largest value: products may round both factors to bf16.
const TOLERANCE: f32 = 2e-2;
/// Tokens of the trial: more than one block of keys, and more rows than the kernels for few take.
const TOKENS: usize = 40;
const WIDTH: usize = 256;

const FORMATS: [WeightFormat; 8] = [
    WeightFormat::F32,
    WeightFormat::F16,
    WeightFormat::Bf16,
    WeightFormat::Nf4 { double: false },
    WeightFormat::Fp4 { double: true },
    WeightFormat::Q8_0,
    WeightFormat::Q4_0,
    WeightFormat::Q4K,
];

impl CudaBackend {
    /// Whether it computes what it should.
    ///
    /// # Errors
    /// What came out wrong, or why nothing came out.
    pub fn prove(&mut self) -> Result<(), String> {
        let found = catch_unwind(AssertUnwindSafe(|| trial(self)));
        let found = found.map_err(|_| "a kernel of the trial could not be run".to_owned())?;
        let expected = trial(&mut ReferenceBackend);
        for ((what, found), (_, expected)) in found.iter().zip(&expected) {
            let largest = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
            let near = |(f, e): (&f32, &f32)| (f - e).abs() <= TOLERANCE * largest;
            if found.len() != expected.len() || !found.iter().zip(expected).all(near) {
                return Err(format!("{what} came out wrong"));
            }
        }
        Ok(())
    }
}

/// Numbers in −1 .. 1 without a pattern.
fn noise(seed: usize, count: usize) -> Vec<f32> {
    let mut state = seed as u32 * 747_796_405 + 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

fn matrix<B: Backend>(b: &mut B, seed: usize, rows: usize, width: usize) -> B::Rows {
    b.upload(&noise(seed, rows * width), rows, width)
}

/// Results by name.
fn trial<B: Backend>(b: &mut B) -> Vec<(&'static str, Vec<f32>)> {
    let mut results = Vec::new();
    for format in FORMATS {
        products(b, format, &mut results);
    }
    between(b, &mut results);
    for format in [KvFormat::F32, KvFormat::Bf16, KvFormat::Int8] {
        attention(b, format, &mut results);
    }
    results
}

/// One row and many, forward and backward.
fn products<B: Backend>(
    b: &mut B,
    format: WeightFormat,
    results: &mut Vec<(&'static str, Vec<f32>)>,
) {
    let values = noise(1, 72 * WIDTH);
    let w = b.pack(
        HostWeight { values: (&values).into(), out_features: 72, in_features: WIDTH },
        format,
    );
    for rows in [1, TOKENS] {
        let (x, mut y) = (matrix(b, 2, rows, WIDTH), b.zeros(rows, 72));
        b.matmul(&x, &w, None, &mut y, 0);
        let mut dx = b.zeros(rows, WIDTH);
        b.matmul_backward(&y, 0, &w, &mut dx);
        results.push(("a product", b.download(&y)));
        results.push(("the backward of a product", b.download(&dx)));
    }
    results.push(("a weight", b.unpack(&w)));
}

/// Norm, MLP, loss and a weight's gradient.
fn between<B: Backend>(b: &mut B, results: &mut Vec<(&'static str, Vec<f32>)>) {
    let weight = matrix(b, 3, 1, WIDTH);
    let norm = Norm { kind: NormKind::Rms, eps: 1e-5, weight, bias: None };
    let (x, mut y, mut u) =
        (matrix(b, 4, TOKENS, WIDTH), b.zeros(TOKENS, WIDTH), b.zeros(TOKENS, WIDTH / 2));
    b.norm(&x, &norm, &mut y);
    b.mlp_inner(&y, Activation::Silu, true, &mut u);
    let mut gradient = b.zeros(WIDTH, WIDTH / 2);
    b.weight_gradient(&x, 0, &u, &mut gradient, None);
    results.push(("a norm", b.download(&y)));
    results.push(("the inside of the MLP", b.download(&u)));
    results.push(("the gradient of a weight", b.download(&gradient)));
    let labels: Vec<i32> = (0..TOKENS as i32).collect();
    let loss = b.cross_entropy(&mut y, &labels, 1.0);
    results.push(("a loss", vec![loss.loss as f32]));
    results.push(("the gradient of the loss", b.download(&y)));
}

/// Heads with RoPE, the cache, and attention over it.
fn attention<B: Backend>(b: &mut B, format: KvFormat, results: &mut Vec<(&'static str, Vec<f32>)>) {
    let (heads, kv_heads, head_dim) = (4, 2, 32);
    let spec = HeadsSpec {
        heads,
        kv_heads,
        head_dim,
        clip: None,
        q_norm: None,
        k_norm: None,
        rope: Rope::plain((0..16).map(|i| 0.6f32.powi(i)).collect()),
    };
    let places = Places::whole(TOKENS);
    let qkv = matrix(b, 5, TOKENS, 8 * head_dim);
    let [mut q, mut k, mut v] = [4, 2, 2].map(|heads| b.zeros(TOKENS, heads * head_dim));
    b.heads(&qkv, &spec, &places, &mut q, &mut k, &mut v);
    let blocks = TOKENS.div_ceil(BLOCK_TOKENS);
    let mut cache = b.cache(&CacheShape { layers: 1, kv_heads, head_dim, blocks, format });
    let blocks = (0..blocks as u32).rev().collect();
    let sequence = [SequenceRows { rows: 0..TOKENS, start: 0, read: TOKENS, blocks }];
    b.write_cache(&mut cache, 0, &sequence, &k, &v);
    let spec = AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        scale: 0.2,
        window: None,
        softcap: None,
        alibi: None,
        causal: true,
    };
    let mut o = b.zeros(TOKENS, heads * head_dim);
    b.attention_cached(&cache, 0, &sequence, &spec, &q, &mut o);
    results.push(("a rotated query", b.download(&q)));
    results.push(("attention", b.download(&o)));
}

#[cfg(test)]
mod tests {
    use super::super::machine::{Address, Launch, Machine, MachineError};
    use super::*;
    use crate::backend::emulator;

    #[test]
    fn the_emulated_gpu_passes_the_trial() {
        assert_eq!(emulator::cuda().prove(), Ok(()));
    }

    /// A GPU that skips every launch of one kernel.
    struct Skipping(emulator::Emulator, &'static str);

    impl Machine for Skipping {
        fn allocate(&self, bytes: usize) -> Result<Address, MachineError> {
            self.0.allocate(bytes)
        }
        fn free(&self, at: Address) {
            self.0.free(at);
        }
        fn write(&self, to: Address, bytes: &[u8]) -> Result<(), MachineError> {
            self.0.write(to, bytes)
        }
        fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), MachineError> {
            self.0.read(from, bytes)
        }
        fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), MachineError> {
            self.0.copy(from, to, bytes)
        }
        fn clear(&self, at: Address, bytes: usize) -> Result<(), MachineError> {
            self.0.clear(at, bytes)
        }
        fn launch(&self, launch: Launch<'_>) -> Result<(), MachineError> {
            if launch.kernel == self.1 { Ok(()) } else { self.0.launch(launch) }
        }
        fn has_tensor_cores(&self) -> bool {
            self.0.has_tensor_cores()
        }
        fn free_bytes(&self) -> Option<usize> {
            self.0.free_bytes()
        }
    }

    #[test]
    fn a_gpu_that_computes_wrong_is_found_out() {
        for kernel in ["product_many", "norm_forward", "attention"] {
            let machine = Skipping(emulator::Emulator::default(), kernel);
            assert!(CudaBackend::new(Box::new(machine)).prove().is_err(), "{kernel}");
        }
    }
}
