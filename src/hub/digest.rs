//! What the hub promises about a file's bytes: SHA-256 of large ones, git's object id of the others.

use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A promise, in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digest {
    Sha256(String),
    /// SHA-1 of `blob LENGTH\0` and the content.
    Git(String),
}

impl Digest {
    /// Tells them apart by their length; anything else promises nothing.
    pub fn read(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let hex = text.chars().all(|c| c.is_ascii_hexdigit());
        match text.len() {
            64 if hex => Some(Self::Sha256(text)),
            40 if hex => Some(Self::Git(text)),
            _ => None,
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Sha256(text) | Self::Git(text) => text,
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Git(_) => "git's id",
        }
    }

    /// The same digest of what is in the file.
    pub fn of_file(&self, path: &Path) -> io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        match self {
            Self::Sha256(_) => digest_of(Sha256::new(), &mut file),
            Self::Git(_) => {
                let start = format!("blob {}\0", file.metadata()?.len());
                digest_of(Sha1::new_with_prefix(start), &mut file)
            }
        }
    }
}

fn digest_of(mut digest: impl sha2::Digest, from: &mut impl Read) -> io::Result<String> {
    let mut piece = vec![0; 1 << 20];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(hex::encode(digest.finalize())),
            read => digest.update(&piece[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum_and_git_hash_object() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "hello\n").expect("a file");
        for text in [
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
            "W/\"ce013625030ba8dba906f756967f9e9ca394464a\"",
        ] {
            let digest = Digest::read(text).expect("a digest");
            assert_eq!(digest.of_file(&path).expect("readable"), digest.as_str());
        }
        assert_eq!(Digest::read("\"123-abc\""), None);
    }
}
