//! The bytes of a tensor, read and hashed piece by piece on every core. BLAKE3, since SHA-256 took a
//! sixth of the time that a model needed to load.

use std::io;

use super::entry::TensorFile;
use crate::backend::HostThreads;
use blake3::OUT_LEN;

/// Bytes of a piece: hashed while the second-level cache still holds them.
const PIECE: usize = 1 << 19;

/// Fills `into` from `start` on in `file` and returns the digest over the digests of its pieces.
///
/// # Errors
/// If the file ends earlier or cannot be read.
pub fn read(
    threads: &HostThreads,
    file: &TensorFile,
    start: u64,
    into: &mut [u8],
) -> io::Result<blake3::Hash> {
    let starts = (start..).step_by(PIECE);
    let pieces = starts.zip(into.chunks_mut(PIECE)).map(|piece| (piece, Ok([0; OUT_LEN])));
    let mut pieces: Vec<_> = pieces.collect();
    threads.for_each(&mut pieces, |((start, piece), digest)| {
        let read = file.data.read_at(*start, piece);
        *digest = read.map(|()| *blake3::hash(piece).as_bytes());
    });
    let digests = pieces.into_iter().map(|(_, digest)| digest);
    let digests: Vec<[u8; OUT_LEN]> = digests.collect::<io::Result<_>>()?;
    Ok(blake3::hash(digests.as_flattened()))
}

#[cfg(test)]
mod tests {
    use super::super::entry::Data;
    use super::*;

    #[test]
    fn every_piece_arrives_and_counts() {
        let bytes: Vec<u8> = (0..5 * PIECE / 2 + 3).map(|i| (i / 7) as u8).collect();
        let file = |bytes: &[u8]| TensorFile {
            name: "tensors".to_owned(),
            data: Data::Bytes(bytes.to_vec().into()),
        };
        let threads = HostThreads::new(2);
        let read = |bytes: &[u8], start: usize, count: usize| {
            let mut into = vec![7; count];
            let digest = super::read(&threads, &file(bytes), start as u64, &mut into);
            digest.map(|digest| (into, digest))
        };
        let (found, digest) = read(&bytes, 3, bytes.len() - 3).unwrap();
        assert!(found == bytes[3..]);
        for at in [3, PIECE + 3, bytes.len() - 1] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            let (_, changed) = read(&other, 3, bytes.len() - 3).unwrap();
            assert_ne!(changed, digest, "byte {at}");
        }
        assert!(read(&bytes, 4, bytes.len() - 3).is_err(), "one byte too many");
        assert!(read(&bytes, 4, 0).is_ok_and(|(found, _)| found.is_empty()));
    }
}
