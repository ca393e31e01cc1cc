//! One file from the hub into the cache: resumed where it broke off, checked, then named.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use ureq::{Body, http::Response};

use super::cache::{Cache, create_parent};
use super::digest::Digest;
use super::remote::{Remote, RemoteFile, unreachable};
use super::{HubError, HubSettings};

/// Failures in a row without a single byte before we give up.
const MAX_FAILURES: u32 = 5;

/// Brings the file to its place in the snapshot of `commit`, unless its blob is there already.
///
/// # Errors
/// [`HubError`]; what has arrived stays for the next attempt, unless it is damaged.
pub fn bring(
    remote: &Remote<'_>,
    cache: &Cache,
    commit: &str,
    file: &RemoteFile,
    settings: &HubSettings,
    bar: &ProgressBar,
) -> Result<(), HubError> {
    let key = key(commit, file);
    let (blob, part) = (cache.blob(&key), cache.part(&key));
    if blob.is_file() {
        bar.inc(file.size.unwrap_or(0));
        return cache.link(commit, &file.name, &key);
    }
    create_parent(&part)?;
    let out = OpenOptions::new().create(true).append(true).open(&part);
    let out = out.map_err(HubError::write(&part))?;
    // Another process may be downloading it: its file may be whole when the lock is ours.
    out.lock().map_err(HubError::write(&part))?;
    if !blob.is_file() {
        let mut transfer = Transfer { remote, commit, file, part: &part, out, bar, promised: None };
        transfer.run(settings)?;
        transfer.check()?;
        fs::rename(&part, &blob).map_err(HubError::write(&blob))?;
    }
    cache.link(commit, &file.name, &key)
}

/// The name of a blob: its digest where that is known before.
fn key(commit: &str, file: &RemoteFile) -> String {
    match &file.digest {
        Some(digest) => digest.as_str().to_owned(),
        None => hex::encode(Sha256::digest(format!("{commit}/{}", file.name))),
    }
}

struct Transfer<'a> {
    remote: &'a Remote<'a>,
    commit: &'a str,
    file: &'a RemoteFile,
    part: &'a Path,
    out: File,
    bar: &'a ProgressBar,
    /// The digest that came with the bytes.
    promised: Option<Digest>,
}

impl Transfer<'_> {
    /// Until all of it is there; every byte gained allows for new failures.
    fn run(&mut self, settings: &HubSettings) -> Result<(), HubError> {
        let mut failures = 0;
        self.bar.inc(self.length()?);
        loop {
            let before = self.length()?;
            match self.attempt(before) {
                Ok(()) => return Ok(()),
                Err(error) if !error.may_pass() => return Err(error),
                Err(error) => {
                    failures = if self.length()? > before { 1 } else { failures + 1 };
                    if failures >= MAX_FAILURES {
                        return Err(error);
                    }
                    std::thread::sleep(settings.pause * (1 << failures.min(5)));
                }
            }
        }
    }

    /// One request, from what is there on.
    fn attempt(&mut self, have: u64) -> Result<(), HubError> {
        if self.file.size == Some(have) {
            return Ok(());
        }
        let url = self.remote.url_of(self.commit, &self.file.name);
        let bytes = self.remote.open(self.commit, &self.file.name, have)?;
        self.promised = bytes.digest.or(self.promised.take());
        let response = bytes.response;
        let goes_on = response.status() == 206 && range(&response).is_some_and(|it| it.0 == have);
        if !goes_on {
            self.restart(have)?;
        }
        if response.status() == 416 || (response.status() == 206 && !goes_on) {
            return Err(unreachable(&url, &"it does not go on where the last download ended"));
        }
        let start = if goes_on { have } else { 0 };
        let total = self.file.size.or_else(|| total(&response, start));
        let total = total.ok_or_else(|| HubError::Answer {
            url: url.clone(),
            reason: "a file without a length".to_owned(),
        })?;
        self.copy(response, start, total, &url)
    }

    fn copy(
        &mut self,
        response: Response<Body>,
        mut at: u64,
        total: u64,
        url: &str,
    ) -> Result<(), HubError> {
        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; 1 << 18];
        while at < total {
            let most = (total - at).min(piece.len() as u64) as usize;
            let read = body.read(&mut piece[..most]).map_err(|error| unreachable(url, &error))?;
            if read == 0 {
                return Err(unreachable(url, &format!("it broke off after {at} of {total} bytes")));
            }
            self.out.write_all(&piece[..read]).map_err(HubError::write(self.part))?;
            at += read as u64;
            self.bar.inc(read as u64);
        }
        self.out.sync_all().map_err(HubError::write(self.part))
    }

    /// Keeps the promise of the listing, else that of the headers.
    fn check(&self) -> Result<(), HubError> {
        let digest = self.file.digest.as_ref().or(self.promised.as_ref());
        let Some(digest) = digest else { return Ok(()) };
        let found = digest.of_file(self.part).map_err(HubError::write(self.part))?;
        if found == digest.as_str() {
            return Ok(());
        }
        fs::remove_file(self.part).map_err(HubError::write(self.part))?;
        Err(HubError::Damaged {
            file: self.file.name.clone(),
            kind: digest.kind(),
            expected: digest.as_str().to_owned(),
            found,
        })
    }

    fn restart(&mut self, had: u64) -> Result<(), HubError> {
        self.bar.set_position(self.bar.position().saturating_sub(had));
        self.out.set_len(0).map_err(HubError::write(self.part))
    }

    fn length(&self) -> Result<u64, HubError> {
        Ok(self.out.metadata().map_err(HubError::write(self.part))?.len())
    }
}

/// First byte and length of the whole, from `bytes FIRST-LAST/WHOLE`.
fn range(response: &Response<Body>) -> Option<(u64, Option<u64>)> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, whole) = text.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, whole.parse().ok()))
}

fn total(response: &Response<Body>, start: u64) -> Option<u64> {
    if let Some((_, whole)) = range(response) {
        return whole;
    }
    let length: u64 = response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    start.checked_add(length)
}
