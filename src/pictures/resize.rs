//! Bicubic resizing as PIL does it, to the bit: Keys' kernel (1981, a = −0.5) stretched when a
//! picture shrinks, weights rounded to 22 bits, 8 bits between the two passes.

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
    let bytes = if shortens(picture, width, height) {
        let used = reach(&across);
        let short = merge_rows(&picture.bytes, picture.width, &down, used.clone(), 0);
        merge_columns(&short, used.len(), &across, used.start)
    } else {
        let used = reach(&down);
        let rows = 3 * picture.width * used.start..3 * picture.width * used.end;
        let narrow = merge_columns(&picture.bytes[rows], picture.width, &across, 0);
        merge_rows(&narrow, across.len(), &down, 0..across.len(), used.start)
    };
    Rgb { width: across.len(), height: down.len(), bytes }
}

/// Whether rows are merged before columns: where more than twice as many rows go as columns, since
/// PIL 13.
fn shortens(picture: &Rgb, width: usize, height: usize) -> bool {
    let columns = picture.width.saturating_sub(width);
    height < picture.height && picture.height - height > 2 * columns
}

/// The old samples that any of the new ones is made of.
fn reach(taps: &[Taps]) -> Range<usize> {
    let first = taps.iter().map(|taps| taps.first).min().unwrap_or(0);
    first..taps.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or(0)
}

/// New columns of rows of `width` pixels, which begin at the old column `first`.
fn merge_columns(bytes: &[u8], width: usize, across: &[Taps], first: usize) -> Vec<u8> {
    let rows = bytes.chunks_exact(3 * width);
    rows.flat_map(|row| {
        across.iter().flat_map(move |taps| weigh(taps, |at| &row[3 * (at - first)..]))
    })
    .collect()
}

/// New rows, of `columns` alone, from rows of `width` pixels that begin at the old row `first`.
fn merge_rows(
    bytes: &[u8],
    width: usize,
    down: &[Taps],
    columns: Range<usize>,
    first: usize,
) -> Vec<u8> {
    let pixel = |taps, column| weigh(taps, |at| &bytes[3 * ((at - first) * width + column)..]);
    let row = |taps| columns.clone().map(move |column| pixel(taps, column));
    down.iter().flat_map(row).flatten().collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `Image.resize((3, 6), BICUBIC)` of Pillow 13 on a picture of 5 × 19, of which it merges the
    /// rows first.
    #[rustfmt::skip]
    const TALL: [u8; 54] = [
        83, 104, 108, 146, 108, 174, 109, 116, 84, 94, 96, 168, 160, 125, 150, 141, 168, 168,
        100, 88, 81, 117, 117, 141, 97, 121, 154, 146, 132, 99, 174, 136, 158, 168, 110, 150,
        174, 156, 114, 178, 151, 135, 182, 105, 143, 123, 138, 111, 92, 144, 128, 108, 78, 97,
    ];

    #[test]
    fn the_passes_of_a_tall_picture_come_in_the_order_of_pil() {
        let (width, height) = (5, 19);
        let bytes = (0..3 * width * height).map(|i| ((i * i * 7 + i * 31) % 251) as u8).collect();
        let picture = Rgb { width, height, bytes };
        assert_eq!(resize(&picture, (3, 6), 0..3, 0..6).bytes, TALL);
        let part = resize(&picture, (3, 6), 1..3, 2..5);
        let rows = TALL.chunks_exact(9).skip(2).take(3);
        assert_eq!(part.bytes, rows.flat_map(|row| row[3..].to_vec()).collect::<Vec<_>>());
    }
}
