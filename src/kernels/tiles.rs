//! Filling packed weights on every core, while loading.

/// Calls `fill` with the number of each tile and its parts of two arrays, `per_a` and `per_b` long.
pub fn for_each<A: Send, B: Send>(
    (a, per_a): (&mut [A], usize),
    (b, per_b): (&mut [B], usize),
    fill: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let tiles = a.len() / per_a.max(1);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = tiles.div_ceil(threads).max(1);
    let parts = a.chunks_mut((share * per_a).max(1)).zip(b.chunks_mut((share * per_b).max(1)));
    std::thread::scope(|scope| {
        for (part, (a, b)) in parts.enumerate() {
            let fill = &fill;
            scope.spawn(move || {
                let tiles = a.chunks_mut(per_a).zip(b.chunks_mut(per_b));
                for (tile, (a, b)) in tiles.enumerate() {
                    fill(part * share + tile, a, b);
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_is_filled_once() {
        let (mut a, mut b) = (vec![0; 7 * 3], vec![0; 7 * 2]);
        for_each((&mut a, 3), (&mut b, 2), |tile, a, b| {
            a.iter_mut().chain(b).for_each(|value| *value += tile);
        });
        assert!(
            (0..7).all(|tile| a[tile * 3..][..3] == [tile; 3] && b[tile * 2..][..2] == [tile; 2])
        );
    }
}
