//! How long a step takes, by its rows: measured as the steps go by.

/// Weight of the newest measurement.
const NEWEST: f64 = 0.15;
/// Rows over which the slope is taken, so that noise in neighbouring measurements averages out.
const STRETCH: usize = 8;
/// Before anything wider was measured, a row adds this share of a step of one.
const GUESSED_SHARE: f64 = 1.0 / 16.0;
/// Two classes of width for each doubling: 1, 2, 3, 4–5, 6–7, 8–11, 12–15, …
const CLASSES: usize = 32;

/// Smoothed seconds per step for each class of width.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    classes: [Class; CLASSES],
}

/// The steps of one class of width, on average.
#[derive(Clone, Copy, Debug, Default)]
struct Class {
    rows: f64,
    seconds: f64,
}

impl Pace {
    /// A step of `rows` rows took so long.
    pub fn note(&mut self, rows: usize, seconds: f64) {
        let class = &mut self.classes[class(rows)];
        let newest = if class.seconds == 0.0 { 1.0 } else { NEWEST };
        class.rows += newest * (rows as f64 - class.rows);
        class.seconds += newest * (seconds - class.seconds);
    }

    /// Whether no step was measured yet.
    pub fn is_unknown(&self) -> bool {
        self.classes.iter().all(|class| class.seconds == 0.0)
    }

    /// The pace of steps that take so many times as long.
    pub fn slower(&self, times: f64) -> Self {
        let mut slower = self.clone();
        slower.classes.iter_mut().for_each(|class| class.seconds *= times);
        slower
    }

    /// How long a step of `rows` rows will take; 0 if nothing was measured yet.
    pub fn seconds(&self, rows: usize) -> f64 {
        let rows = rows as f64;
        let known = || self.classes.iter().filter(|class| class.seconds > 0.0);
        let below = known().rfind(|class| class.rows <= rows);
        let above = known().find(|class| class.rows > rows);
        match (below, above) {
            (Some(below), Some(above)) => {
                let share = (rows - below.rows) / (above.rows - below.rows);
                below.seconds + share * (above.seconds - below.seconds)
            }
            (Some(below), None) => {
                let per_row = below.seconds / (below.rows - 1.0 + 1.0 / GUESSED_SHARE);
                below.seconds + per_row * (rows - below.rows)
            }
            (None, above) => above.map_or(0.0, |above| above.seconds),
        }
    }

    /// Seconds that one row more adds to a step of `rows` rows.
    pub fn slope(&self, rows: usize) -> f64 {
        ((self.seconds(rows + STRETCH) - self.seconds(rows)) / STRETCH as f64).max(0.0)
    }

    /// The widest step of at most `most` rows that takes no longer than `seconds`; 0 if even one
    /// row takes longer.
    pub fn widest(&self, seconds: f64, most: usize) -> usize {
        let (mut fits, mut too_wide) = (0, most + 1);
        while too_wide - fits > 1 {
            let middle = fits.midpoint(too_wide);
            match self.seconds(middle) <= seconds {
                true => fits = middle,
                false => too_wide = middle,
            }
        }
        fits
    }
}

fn class(rows: usize) -> usize {
    let rows = rows.max(1);
    let doublings = rows.ilog2() as usize;
    let half = if doublings == 0 { 0 } else { rows >> (doublings - 1) & 1 };
    (2 * doublings + half).min(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_measurements_is_interpolated() {
        let mut pace = Pace::default();
        assert_eq!(pace.seconds(5), 0.0);
        pace.note(1, 0.016);
        assert!((pace.slope(1) - 0.001).abs() < 1e-9, "a guess until something wider was measured");
        pace.note(33, 0.080);
        assert!((pace.seconds(17) - 0.048).abs() < 1e-9);
        assert!((pace.slope(1) - 0.002).abs() < 1e-9);
        assert_eq!(pace.widest(0.048, 512), 17);
        assert_eq!(pace.widest(0.048, 10), 10);
        assert_eq!(pace.widest(0.001, 512), 0);
    }

    #[test]
    fn a_measurement_that_strays_is_smoothed() {
        let mut pace = Pace::default();
        (0..50).for_each(|_| pace.note(8, 0.010));
        pace.note(8, 0.100);
        assert!(pace.seconds(8) < 0.030);
        (0..50).for_each(|_| pace.note(8, 0.020));
        assert!((pace.seconds(8) - 0.020).abs() < 1e-3);
    }

    #[test]
    fn classes_are_narrow_and_in_order() {
        let classes: Vec<usize> = (1..5000).map(class).collect();
        assert!(classes.is_sorted() && class(1) < class(2) && class(2) < class(3));
        assert_eq!((class(4), class(6)), (class(5), class(7)));
        assert!(class(usize::MAX) < CLASSES);
    }
}
