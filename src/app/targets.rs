//! What is written is written aside, and takes its place by a rename at the end.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What is written, each file or folder first aside.
pub(super) struct Targets {
    out: PathBuf,
    pub aside: PathBuf,
    /// Where the eyes of a model that sees go, which have a GGUF file of their own.
    pub eyes: PathBuf,
    pub eyes_aside: PathBuf,
}

impl Targets {
    pub fn new(out: &Path) -> Self {
        let mut eyes = OsString::from("mmproj-");
        eyes.push(out.file_name().unwrap_or_default());
        let eyes = out.with_file_name(eyes);
        Self { aside: aside(out), out: out.to_owned(), eyes_aside: aside(&eyes), eyes }
    }

    pub fn remove(&self) {
        remove(&self.aside);
        remove(&self.eyes_aside);
    }

    pub fn put_in_place(&self) -> std::io::Result<()> {
        if self.eyes_aside.exists() {
            std::fs::rename(&self.eyes_aside, &self.eyes)?;
        }
        std::fs::rename(&self.aside, &self.out)
    }
}

/// Beside the target, so that the last step is a rename.
pub(super) fn aside(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    out.with_file_name(name)
}

pub(super) fn remove(aside: &Path) {
    let _nothing_there = match aside.is_dir() {
        true => std::fs::remove_dir_all(aside),
        false => std::fs::remove_file(aside),
    };
}
