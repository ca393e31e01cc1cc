//! Bicubic resizing as PIL does it, to the bit: Keys' kernel (1981, a = −0.5) stretched when a
//! picture shrinks, weights rounded to 22 bits, rows first and then columns, 8 bits between them.

use std::f64;
use std::ops::Range;

use super::decode::Rgb;

const PRECISION_BITS: u32 = 22;
/// Reach of the kernel at full size.
const SUPPORT: f64 = 2.0;

/// Which old samples make a new one, with what weight.
struct Taps {
    first: usize,
    weights: Vec<i64>,
}

/// The part `columns` × `rows` of `picture` resized to `width` × `height`. Only that part is
/// computed, so that a picture of odd proportions costs no more than another.
pub fn resize(
    picture: &Rgb,
    (width, height): (usize, usize),
    columns: Range<usize>,
    rows: Range<usize>,
) -> Rgb {
    let across = taps(picture.width, width, columns);
    let down = taps(picture.height, height, rows);
    let first = down.iter().map(|taps| taps.first).min().unwrap_or(0);
    let last = down.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or(0);
    let narrow: Vec<u8> = picture
        .bytes
        .chunks_exact(3 * picture.width)
        .skip(first)
        .take(last - first)
        .flat_map(|row| across.iter().flat_map(move |taps| weigh(taps, |at| &row[3 * at..])))
        .collect();
    let stride = 3 * across.len();
    let bytes = down.iter().flat_map(|taps| {
        let narrow = &narrow;
        (0..across.len())
            .flat_map(move |column| weigh(taps, |at| &narrow[(at - first) * stride + 3 * column..]))
    });
    Rgb { width: across.len(), height: down.len(), bytes: bytes.collect() }
}

/// Red, green and blue of one new pixel, `pixel` finding the old ones.
fn weigh<'a>(taps: &Taps, pixel: impl Fn(usize) -> &'a [u8]) -> [u8; 3] {
    let mut sums = [1 << (PRECISION_BITS - 1); 3];
    for (at, weight) in taps.weights.iter().enumerate() {
        let pixel = pixel(taps.first + at);
        for (sum, &value) in sums.iter_mut().zip(pixel) {
            *sum += i64::from(value) * weight;
        }
    }
    sums.map(|sum| (sum >> PRECISION_BITS).clamp(0, 255) as u8)
}

/// The taps of the new samples `part` of `new`, from `old` ones.
fn taps(old: usize, new: usize, part: Range<usize>) -> Vec<Taps> {
    if old == new {
        let weights = || vec![1 << PRECISION_BITS];
        return part.map(|first| Taps { first, weights: weights() }).collect();
    }
    let scale = old as f64 / new as f64;
    let stretch = scale.max(1.0);
    part.map(|index| {
        let (center, support) = ((index as f64 + 0.5) * scale, SUPPORT * stretch);
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(old);
        let weight = |at: usize| cubic((at as f64 - center + 0.5) * (1.0 / stretch));
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        Taps { first, weights: weights.iter().map(|weight| rounded(weight / sum)).collect() }
    })
    .collect()
}

fn rounded(weight: f64) -> i64 {
    let scaled = weight * f64::from(1u32 << PRECISION_BITS);
    (scaled + 0.5f64.copysign(scaled)) as i64
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
