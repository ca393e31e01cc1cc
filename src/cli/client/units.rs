//! Times, sizes, numbers and curves as people read them.

use std::time::{SystemTime, UNIX_EPOCH};

/// `1,234,567`.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `512 B`, `1.5 kB`, `23 MB`.
pub fn size(bytes: u64) -> String {
    let mut scaled = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if scaled < 999.5 {
            let digits = usize::from(unit != "B" && scaled < 9.95);
            return format!("{scaled:.digits$} {unit}");
        }
        scaled /= 1000.0;
    }
    format!("{scaled:.1} TB")
}

/// `12 s`, `3 min 05 s`, `2 h 10 min`, `4 d 3 h`.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// How long ago a time in Unix seconds was.
pub fn ago(time: i64) -> String {
    since(time, now())
}

fn since(time: i64, now: i64) -> String {
    match u64::try_from(now - time).unwrap_or(0) {
        0..2 => "just now".to_owned(),
        seconds @ 2..60 => format!("{seconds} s ago"),
        seconds @ 60..3600 => format!("{} min ago", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

/// Unix seconds.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64)
}

/// A curve in at most `width` characters, each the mean of its share; the highest fills its cell.
pub fn curve(values: &[f64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let cells = width.min(values.len());
    let means: Vec<f64> = (0..cells)
        .map(|cell| &values[cell * values.len() / cells..(cell + 1) * values.len() / cells])
        .map(|share| share.iter().sum::<f64>() / share.len() as f64)
        .collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let height = |mean: &f64| match high - low {
        range if range > 0.0 => ((mean - low) / range * 7.0).round() as usize,
        _ => 0,
    };
    means.iter().map(|mean| BARS[height(mean).min(7)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sizes_and_times_read_easily() {
        assert_eq!([number(0), number(999), number(1_234_567)], ["0", "999", "1,234,567"]);
        assert_eq!([size(0), size(1500), size(999_999)], ["0 B", "1.5 kB", "1.0 MB"]);
        assert_eq!([size(23_400_000), size(999)], ["23 MB", "999 B"]);
        assert_eq!([span(59), span(185), span(7800)], ["59 s", "3 min 05 s", "2 h 10 min"]);
        assert_eq!([since(5, 5), since(0, 61), since(9, 0)], ["just now", "1 min ago", "just now"]);
    }

    #[test]
    fn a_curve_falls_as_its_values_do() {
        assert_eq!(curve(&[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 8), "█▇▆▅▄▃▂▁");
        assert_eq!(curve(&[3.0, 1.0, 0.0, 0.0], 2), "█▁");
        assert_eq!(curve(&[2.0, f64::NAN, 2.0], 9), "▁▁");
        assert_eq!(curve(&[], 9), "");
    }
}
