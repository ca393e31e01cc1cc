//! Whether a JPEG file is whole: the decoder fills what is missing with grey.
//!
//! ITU-T T.81, annex B: a file is a row of marker segments; a scan's data end at the next marker,
//! within them `FF` is followed by `00` or by a restart marker.

const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;
/// Markers that nothing follows: TEM, the restarts, the start of the image.
const BARE: [std::ops::RangeInclusive<u8>; 2] = [0x01..=0x01, 0xd0..=0xd8];

/// Whether the marker of the image's end is reached. What comes behind it does not matter.
pub(super) fn ends(bytes: &[u8]) -> bool {
    let (mut at, mut seen_scan) = (0, false);
    while let Some(marker) = next_marker(bytes, &mut at) {
        match marker {
            END_OF_IMAGE => return seen_scan,
            marker if BARE.iter().any(|range| range.contains(&marker)) => {}
            marker => {
                seen_scan |= marker == START_OF_SCAN;
                let Some(&[high, low]) = bytes.get(at..at + 2) else { return false };
                at += usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
    false
}

/// The marker at or behind `at`, which then stands behind it.
fn next_marker(bytes: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        let rest = bytes.get(*at..)?;
        *at += rest.iter().position(|&byte| byte == 0xff)? + 1;
        // Any number of fill bytes may stand before a marker.
        match *bytes.get(*at)? {
            0xff => {}
            0x00 => *at += 1,
            marker => {
                *at += 1;
                return Some(marker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, ImageFormat, RgbImage};
    use std::io::Cursor;

    #[test]
    fn a_file_is_whole_with_its_end_and_not_before() {
        let noise = |x: u32, y: u32| image::Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, x as u8]);
        let picture = DynamicImage::ImageRgb8(RgbImage::from_fn(40, 30, noise));
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, ImageFormat::Jpeg).expect("written");
        let mut bytes = file.into_inner();
        assert!(ends(&bytes));
        assert!((0..bytes.len()).all(|length| !ends(&bytes[..length])), "a cut file has no end");
        bytes.extend(b"what a camera may add");
        assert!(ends(&bytes));
        assert!(!ends(b"") && !ends(b"\xff\xd8\xff\xd9"));
    }
}
