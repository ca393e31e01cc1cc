//! Lines of a file, one at a time and never longer than allowed.

use std::io::{self, BufRead};

/// One line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Bytes(&'a [u8]),
    TooLong,
}

/// Reads lines into one buffer that is used again.
pub(super) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    limit: usize,
    /// Bytes read.
    position: u64,
}

impl<R: BufRead> Lines<R> {
    pub fn new(reader: R, limit: usize) -> Self {
        Self { reader, buffer: Vec::new(), limit, position: 0 }
    }

    /// The place in the file where the next line begins.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next line, or `None` at the end of the file.
    pub fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.buffer.clear();
        let mut any = false;
        let mut too_long = false;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                break;
            }
            any = true;
            let end = available.iter().position(|&byte| byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            too_long |= self.buffer.len() + part.len() > self.limit;
            if !too_long {
                self.buffer.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            self.position += used as u64;
            if end.is_some() {
                break;
            }
        }
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        Ok(match (any, too_long) {
            (false, _) => None,
            (true, true) => Some(Line::TooLong),
            (true, false) => Some(Line::Bytes(&self.buffer)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_buffer_and_long_ones_are_skipped() {
        let text = b"one\r\n\ntwo hundred\nthree";
        for capacity in 1..20 {
            let reader = io::BufReader::with_capacity(capacity, &text[..]);
            let mut lines = Lines::new(reader, 6);
            assert_eq!(lines.next().unwrap(), Some(Line::Bytes(b"one")));
            assert_eq!(lines.next().unwrap(), Some(Line::Bytes(b"")));
            assert_eq!(lines.next().unwrap(), Some(Line::TooLong));
            assert_eq!(lines.next().unwrap(), Some(Line::Bytes(b"three")));
            assert_eq!(lines.next().unwrap(), None);
        }
    }
}
