//! Numbers in 8 bits on the dynamic maps: the nearest of 256 levels, one absmax per 256 numbers.
//! Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization".

const BLOCK: usize = 256;

/// Per decade `10^(i−6)` the midpoints of equal parts of 0.1 .. 1: `2^i` with both signs, or twice
/// as many without; and 0 and 1.
pub(super) fn levels(signed: bool) -> Vec<f32> {
    let mut levels = vec![0.0, 1.0];
    for i in 0..7u32 {
        let n = if signed { 1usize << i } else { 2 << i };
        let step = f64::from((0.9 / n as f64) as f32);
        // Counted up from 0.1 in the lower half and down from 1 in the upper, rounded once.
        let edge = |index: usize| {
            if index < n.div_ceil(2) {
                (f64::from(0.1f32) + step * index as f64) as f32
            } else {
                (1.0 - step * (n - index) as f64) as f32
            }
        };
        let decade = 10f64.powi(i as i32 - 6) as f32;
        for index in 0..n {
            let level = (edge(index) + edge(index + 1)) / 2.0 * decade;
            levels.push(level);
            levels.extend(signed.then_some(-level));
        }
    }
    levels.sort_by(f32::total_cmp);
    levels
}

/// The index of the level nearest to `x`; a midpoint goes to the lower one. `levels` ascend.
pub(super) fn nearest(x: f32, levels: &[f32]) -> usize {
    levels.windows(2).take_while(|pair| x > (pair[0] + pair[1]) / 2.0).count()
}

pub(super) fn decode(codes: &[u8], absmax: &[f32], signed: bool) -> Vec<f32> {
    let levels = levels(signed);
    codes.iter().enumerate().map(|(i, &code)| levels[code as usize] * absmax[i / BLOCK]).collect()
}

pub(super) fn encode(values: &[f32], signed: bool, codes: &mut [u8], absmax: &mut [f32]) {
    let levels = levels(signed);
    for (at, block) in values.chunks(BLOCK).enumerate() {
        absmax[at] = block.iter().fold(0.0, |max, x| max.max(x.abs()));
        let inverse = 1.0 / absmax[at].max(1e-38);
        for (x, code) in block.iter().zip(&mut codes[at * BLOCK..]) {
            *code = nearest(x * inverse, &levels) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_map_has_the_sums_of_the_original() {
        let map = levels(true);
        assert_eq!((map.len(), map[0], map[127], map[255]), (256, -0.992_968_75, 0.0, 1.0));
        let squares: f64 = map.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((squares - 48.595_837_5).abs() < 1e-5);
        assert_eq!(levels(false).len(), 256);
    }
}
