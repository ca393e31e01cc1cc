//! The 8-bit dynamic maps of bitsandbytes, and blocks of numbers quantised with them.
//!
//! Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2. A number is
//! `map[code] · absmax`, with one absmax per block of 256.

use std::sync::LazyLock;

/// Numbers that share one absmax.
pub const BLOCK: usize = 256;

/// 256 levels in ascending order, and what lies halfway between each two.
#[derive(Debug)]
pub struct Map {
    pub levels: [f32; 256],
    midpoints: [f32; 255],
}

/// For numbers of both signs: seven decades, each with twice the levels of the one below.
pub static SIGNED: LazyLock<Map> = LazyLock::new(|| {
    Map::new((0..7).flat_map(|d| decade(d, 1 << d)).flat_map(|level| [level, -level]))
});

/// For numbers that are never negative: twice the levels per decade.
pub static UNSIGNED: LazyLock<Map> =
    LazyLock::new(|| Map::new((0..7).flat_map(|d| decade(d, 2 << d))));

/// `create_dynamic_map` for one decade: the midpoints of `parts` equal parts of 0.1 to 1, times
/// `10^(decade − 6)`.
///
/// To the bit: torch's `linspace` counts up from 0.1 in its lower half and down from 1 in the
/// upper one, with one rounding to `f32` per point.
fn decade(decade: i32, parts: i32) -> impl Iterator<Item = f32> {
    let step = f64::from((0.9 / f64::from(parts)) as f32);
    let edge = move |i: i32| match i < (parts + 1) / 2 {
        true => (f64::from(0.1f32) + step * f64::from(i)) as f32,
        false => (1.0 - step * f64::from(parts - i)) as f32,
    };
    let size = 10f64.powi(decade - 6) as f32;
    (0..parts).map(move |i| (edge(i) + edge(i + 1)) / 2.0 * size)
}

impl Map {
    fn new(levels: impl Iterator<Item = f32>) -> Self {
        let mut levels: Vec<f32> = levels.chain([0.0, 1.0]).collect();
        levels.sort_by(f32::total_cmp);
        Self::of(levels.try_into().expect("two ends and 254 midpoints"))
    }

    /// The map of these levels, which ascend.
    pub fn of(levels: [f32; 256]) -> Self {
        let midpoints = std::array::from_fn(|i| (levels[i] + levels[i + 1]) / 2.0);
        Self { levels, midpoints }
    }

    /// The code of the level nearest to `x`; a midpoint goes to the lower one.
    pub fn nearest(&self, x: f32) -> u8 {
        // Branchless: the outcome of a comparison is as good as random here.
        let mut below = 0;
        for half in [128, 64, 32, 16, 8, 4, 2, 1] {
            below += if self.midpoints[below + half - 1] < x { half } else { 0 };
        }
        below as u8
    }

    /// Quantises one block, of at most [`BLOCK`] numbers, and returns its absmax.
    pub fn encode(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let absmax = values.iter().fold(0f32, |max, x| max.max(x.abs()));
        let inverse = 1.0 / absmax.max(1e-38);
        for (code, x) in codes.iter_mut().zip(values) {
            *code = self.nearest((x * inverse).clamp(-1.0, 1.0));
        }
        absmax
    }

    /// The numbers of one block.
    pub fn decode(&self, codes: &[u8], absmax: f32, values: &mut [f32]) {
        for (x, &code) in values.iter_mut().zip(codes) {
            *x = self.levels[usize::from(code)] * absmax;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(map: &Map) -> [f64; 2] {
        [1, 2].map(|power| map.levels.iter().map(|&v| f64::from(v).powi(power)).sum())
    }

    #[test]
    fn the_maps_are_those_of_bitsandbytes() {
        let map = &SIGNED.levels;
        assert_eq!((map[127], map[255]), (0.0, 1.0));
        assert!((map[0] + 0.992_968_75).abs() < 1e-7 && (map[128] - 5.5e-7).abs() < 1e-12);
        let [sum, squares] = sums(&SIGNED);
        assert!((sum - 1.0).abs() < 1e-6 && (squares - 48.595_837_5).abs() < 1e-5);
        let map = &UNSIGNED.levels;
        assert_eq!((map[0], map[255]), (0.0, 1.0));
        assert!((map[1] - 3.25e-7).abs() < 1e-12 && (map[254] - 0.996_484_4).abs() < 1e-6);
        let [sum, squares] = sums(&UNSIGNED);
        assert!((sum - 75.105_263_1).abs() < 1e-5 && (squares - 48.597_451_8).abs() < 1e-5);
    }

    #[test]
    fn every_level_is_its_own_nearest_and_a_midpoint_falls() {
        for map in [&*SIGNED, &*UNSIGNED] {
            for code in 0..=255u8 {
                assert_eq!(map.nearest(map.levels[usize::from(code)]), code);
            }
            assert_eq!(map.nearest(map.midpoints[200]), 200);
            assert_eq!(map.nearest(map.midpoints[200].next_up()), 201);
        }
    }
}
