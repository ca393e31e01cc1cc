//! Data URLs (RFC 2397), the one kind of picture URL that is read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::PictureError;

/// Most bytes of an encoded picture.
pub const MAX_PICTURE_BYTES: usize = 16 << 20;

/// The bytes of a data URL.
///
/// # Errors
/// [`PictureError::Remote`] for an address, and others for what is no picture of allowed size.
pub fn bytes(url: &str) -> Result<Vec<u8>, PictureError> {
    let Some(rest) = without_prefix(url, "data:") else {
        let remote = url.contains("://");
        return Err(if remote { PictureError::Remote } else { PictureError::NotADataUrl });
    };
    let (kind, data) = rest.split_once(',').ok_or(PictureError::NotADataUrl)?;
    if without_prefix(kind, "image/").is_none() || !kind.ends_with(";base64") {
        return Err(PictureError::NotADataUrl);
    }
    if data.len() / 4 * 3 > MAX_PICTURE_BYTES {
        return Err(PictureError::TooManyBytes { limit: MAX_PICTURE_BYTES });
    }
    STANDARD.decode(data).map_err(|_| PictureError::Base64)
}

/// The scheme and the kind are written in any case.
fn without_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_urls_of_pictures_are_read() {
        assert_eq!(bytes("data:image/png;base64,AQID"), Ok(vec![1, 2, 3]));
        assert_eq!(bytes("DATA:image/jpeg;base64,"), Ok(vec![]));
        for remote in ["http://127.0.0.1/a.png", "https://example.org/a.png", "file:///etc/passwd"]
        {
            assert_eq!(bytes(remote), Err(PictureError::Remote));
        }
        for other in ["", "a.png", "data:", "data:text/plain;base64,AQID", "data:image/png,abc"] {
            assert_eq!(bytes(other), Err(PictureError::NotADataUrl), "{other}");
        }
        assert_eq!(bytes("data:image/png;base64,A-_D"), Err(PictureError::Base64));
        let long = format!("data:image/png;base64,{}", "A".repeat(MAX_PICTURE_BYTES / 3 * 4 + 8));
        assert!(matches!(bytes(&long), Err(PictureError::TooManyBytes { .. })));
    }
}
