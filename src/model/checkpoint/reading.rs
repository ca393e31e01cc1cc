//! The bytes of a tensor, read and hashed piece by piece on every core. BLAKE3, since SHA-256 took a
//! sixth of the time that a model needed to load.

use std::io;
use std::thread;

use super::entry::TensorFile;

/// Bytes of a piece: hashed while the second-level cache still holds them.
const PIECE: usize = 1 << 19;

/// `bytes` bytes of `file` from `start` on, and the digest over the digests of their pieces.
///
/// # Errors
/// If the file ends earlier or cannot be read.
pub fn read(file: &TensorFile, start: u64, bytes: usize) -> io::Result<(Vec<u8>, blake3::Hash)> {
    let mut into = vec![0; bytes];
    let mut digests = vec![[0; blake3::OUT_LEN]; bytes.div_ceil(PIECE)];
    let threads = thread::available_parallelism().map_or(1, usize::from).min(digests.len());
    let share = digests.len().div_ceil(threads.max(1)).max(1);
    let shares = into.chunks_mut(share * PIECE).zip(digests.chunks_mut(share));
    thread::scope(|scope| {
        let begin = |(index, (bytes, digests)): (usize, (&mut [u8], &mut [_]))| {
            let start = start + (index * share * PIECE) as u64;
            pieces(file, start, bytes, digests)
        };
        // The last share is this thread's own.
        let mut shares = shares.enumerate();
        let own = shares.next_back();
        let others: Vec<_> = shares.map(|share| scope.spawn(move || begin(share))).collect();
        own.map_or(Ok(()), begin)?;
        others.into_iter().try_for_each(|thread| thread.join().expect("reading does not panic"))
    })?;
    let digest = blake3::hash(digests.as_flattened());
    Ok((into, digest))
}

fn pieces(
    file: &TensorFile,
    start: u64,
    into: &mut [u8],
    digests: &mut [[u8; blake3::OUT_LEN]],
) -> io::Result<()> {
    for (index, (piece, digest)) in into.chunks_mut(PIECE).zip(digests).enumerate() {
        file.data.read_at(start + (index * PIECE) as u64, piece)?;
        *digest = *blake3::hash(piece).as_bytes();
    }
    Ok(())
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
        let (found, digest) = read(&file(&bytes), 3, bytes.len() - 3).unwrap();
        assert!(found == bytes[3..]);
        for at in [3, PIECE + 3, bytes.len() - 1] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            let (_, changed) = read(&file(&other), 3, bytes.len() - 3).unwrap();
            assert_ne!(changed, digest, "byte {at}");
        }
        assert!(read(&file(&bytes), 4, bytes.len() - 3).is_err(), "one byte too many");
        assert!(read(&file(&bytes), 4, 0).is_ok_and(|(found, _)| found.is_empty()));
    }
}
