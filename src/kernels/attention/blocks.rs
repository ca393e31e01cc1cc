//! Keys and values of one layer, in blocks of sixteen tokens.
//!
//! A block holds the keys of every head `(hd, 16)`, so that sixteen scores are one vector, then the
//! values of every head `(16, hd')` with rows padded by zeros to whole vectors. In int8 each key
//! and each value of a head has one scale; the scales of the block's tokens stand at its end.
#![allow(unsafe_code)]

use half::bf16;

use crate::kernels::lanes::{LANES, Simd};
use crate::kernels::line::Line;

/// How the numbers of a cache are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    Bf16,
    Int8,
}

/// The shape of a layer's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub format: Format,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Layout {
    /// Vectors that one value of a head takes.
    fn vectors(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }

    /// Vectors of the keys of a block, all heads.
    fn keys(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Vectors of keys and values of a block.
    fn numbers(&self) -> usize {
        self.keys() + self.kv_heads * self.vectors() * LANES
    }

    /// Lines that a block takes.
    pub fn block_lines(&self) -> usize {
        match self.format {
            Format::F32 => self.numbers(),
            Format::Bf16 => self.numbers().div_ceil(2),
            Format::Int8 => self.numbers().div_ceil(4) + 2 * self.kv_heads,
        }
    }

    /// Where in a block of int8 the scales of keys begin, in lines; those of values follow.
    fn scales(&self) -> usize {
        self.numbers().div_ceil(4)
    }

    /// Writes one token's keys and values `(kv · hd)` into the block `lines`.
    pub fn write(&self, lines: &mut [Line], token: usize, k: &[f32], v: &[f32]) {
        assert_eq!(lines.len(), self.block_lines(), "the lines of one block");
        match self.format {
            Format::F32 => self.write_as::<f32>(lines, token, k, v),
            Format::Bf16 => self.write_as::<Bf16>(lines, token, k, v),
            Format::Int8 => self.write_as::<i8>(lines, token, k, v),
        }
    }

    fn write_as<T: Number>(&self, lines: &mut [Line], token: usize, k: &[f32], v: &[f32]) {
        let hd = self.head_dim;
        for (head, (k, v)) in k.chunks_exact(hd).zip(v.chunks_exact(hd)).enumerate() {
            let scales = [T::scale(k), T::scale(v)];
            let vectors = numbers_mut::<T>(lines);
            for (d, &k) in k.iter().enumerate() {
                vectors[head * hd + d][token] = T::from_f32(k, scales[0]);
            }
            let first = self.keys() + (head * LANES + token) * self.vectors();
            let values = vectors[first..first + self.vectors()].as_flattened_mut();
            for (i, value) in values.iter_mut().enumerate() {
                *value = T::from_f32(v.get(i).copied().unwrap_or(0.0), scales[1]);
            }
            if T::SCALED {
                lines[self.scales() + head].set_f32(token, scales[0]);
                lines[self.scales() + self.kv_heads + head].set_f32(token, scales[1]);
            }
        }
    }
}

/// One head's blocks of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct HeadBlocks<'a> {
    pub layout: Layout,
    /// All blocks of the layer.
    pub lines: &'a [Line],
    /// The block numbers in order of position, or none: block `b` is number `b`.
    pub table: Option<&'a [u32]>,
    pub kv_head: usize,
}

/// One head's share of one block.
#[derive(Clone, Copy)]
pub(crate) struct HeadBlock<'a, T> {
    /// A vector for each dimension.
    pub keys: &'a [[T; LANES]],
    /// The vectors of each token, token by token.
    values: &'a [[T; LANES]],
    vectors: usize,
    key_scales: &'a [f32; LANES],
    value_scales: &'a [f32; LANES],
}

/// The scales of formats that have none.
static ONES: [f32; LANES] = [1.0; LANES];

impl<'a> HeadBlocks<'a> {
    /// This head's part of the block at `block · 16` tokens; `T` must be the layout's number.
    #[inline(always)]
    pub(crate) fn get<T: Number>(&self, block: usize) -> HeadBlock<'a, T> {
        let layout = &self.layout;
        let number = self.table.map_or(block, |table| table[block] as usize);
        let size = layout.block_lines();
        let lines = &self.lines[number * size..(number + 1) * size];
        let (vectors, head) = (layout.vectors(), self.kv_head);
        let all = numbers::<T>(lines);
        let key = head * layout.head_dim;
        let value = layout.keys() + head * LANES * vectors;
        let scales = |at: usize| match T::SCALED {
            true => words(&lines[layout.scales() + at]),
            false => &ONES,
        };
        HeadBlock {
            keys: &all[key..key + layout.head_dim],
            values: &all[value..value + LANES * vectors],
            vectors,
            key_scales: scales(head),
            value_scales: scales(layout.kv_heads + head),
        }
    }
}

impl<T: Number> HeadBlock<'_, T> {
    /// `dots` of sixteen keys as they are stored become dots of the keys.
    #[inline(always)]
    pub fn scale_keys<S: Simd>(&self, s: S, dots: S::V) -> S::V {
        if T::SCALED { s.mul(dots, s.load(self.key_scales)) } else { dots }
    }

    /// `weights` of sixteen values become weights of the values as they are stored.
    #[inline(always)]
    pub fn scale_weights<S: Simd>(&self, s: S, weights: S::V) -> S::V {
        if T::SCALED { s.mul(weights, s.load(self.value_scales)) } else { weights }
    }

    /// Vector `at` of one token's value, as it is stored.
    #[inline(always)]
    pub fn value<S: Simd>(&self, s: S, token: usize, at: usize) -> S::V {
        T::load(s, &self.values[token * self.vectors + at])
    }

    /// How many vectors a value has.
    #[inline(always)]
    pub fn vectors(&self) -> usize {
        self.vectors
    }
}

/// A number as a cache holds it.
pub(crate) trait Number: Copy + 'static {
    /// Whether it counts in units of a scale.
    const SCALED: bool;

    /// The unit in which the numbers of `x` are counted.
    fn scale(_x: &[f32]) -> f32 {
        1.0
    }
    fn from_f32(x: f32, scale: f32) -> Self;
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::V;
}

/// The upper half of an `f32`, rounded to nearest.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Bf16(u16);

impl Number for f32 {
    const SCALED: bool = false;

    fn from_f32(x: f32, _: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; LANES]) -> S::V {
        s.load(x)
    }
}

impl Number for Bf16 {
    const SCALED: bool = false;

    fn from_f32(x: f32, _: f32) -> Self {
        Self(bf16::from_f32(x).to_bits())
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::V {
        // SAFETY: `Bf16` is a `u16` and nothing else.
        s.load_bf16(unsafe { &*std::ptr::from_ref(x).cast() })
    }
}

impl Number for i8 {
    const SCALED: bool = true;

    /// The largest magnitude becomes 127; what is not finite stays so through its scale.
    fn scale(x: &[f32]) -> f32 {
        let larger = |max: f32, x: &f32| if x.abs() > max || x.is_nan() { x.abs() } else { max };
        x.iter().fold(0.0, larger) / 127.0
    }
    fn from_f32(x: f32, scale: f32) -> i8 {
        if scale > 0.0 { (x / scale).round_ties_even() as i8 } else { 0 }
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[i8; LANES]) -> S::V {
        s.load_i8(x)
    }
}

/// The lines as vectors of numbers.
#[inline(always)]
fn numbers<T: Number>(lines: &[Line]) -> &[[T; LANES]] {
    let count = lines.len() * (size_of::<Line>() / size_of::<[T; LANES]>());
    // SAFETY: every bit pattern is a number of each type, and lines are aligned to 64 bytes.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), count) }
}

/// The same, to be written.
fn numbers_mut<T: Number>(lines: &mut [Line]) -> &mut [[T; LANES]] {
    let count = lines.len() * (size_of::<Line>() / size_of::<[T; LANES]>());
    // SAFETY: as in `numbers`; the borrow is unique.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), count) }
}

/// The words of one line as `f32`.
#[inline(always)]
fn words(line: &Line) -> &[f32; LANES] {
    // SAFETY: a line is sixteen words, and any word is an `f32`.
    unsafe { &*std::ptr::from_ref(line).cast() }
}
