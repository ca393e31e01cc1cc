//! How models are called.
//!
//! A base has the name it was loaded under. A fine-tuned model is `ft:<base>:<org>:<suffix>:<id>`,
//! its checkpoints add `:ckpt-step-<n>`; the name is made from the job, so a job that is tried
//! again makes the same one. Everything else is a name somebody gave.

use super::error::{CatalogError, CatalogResult};
use crate::domain::JobId;

const LONGEST: usize = 64;

/// `ft:<base>:<org>:<suffix>:<id>`; without a suffix its place stays empty.
pub fn fine_tuned_name(
    base: &str,
    organization: &str,
    suffix: Option<&str>,
    job: &JobId,
) -> String {
    let id = job.as_str();
    // The end of a version 7 UUID is random; its beginning is the time.
    let id = &id[id.len().saturating_sub(8)..];
    format!("ft:{base}:{organization}:{}:{id}", suffix.unwrap_or_default())
}

/// What a checkpoint of the model `name` is called.
pub fn checkpoint_name(name: &str, step: usize) -> String {
    format!("{name}:ckpt-step-{step}")
}

/// Refuses a name that could be taken for something else: a path, or a fine-tuned model.
///
/// # Errors
/// [`CatalogError::BadName`].
pub fn check_adapter_name(name: &str) -> CatalogResult<()> {
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins && name.len() <= LONGEST && name.bytes().all(is_plain) {
        return Ok(());
    }
    Err(CatalogError::BadName(name.chars().take(LONGEST + 1).collect()))
}

/// Whether `suffix` may stand in a model's name.
pub fn check_suffix(suffix: &str) -> bool {
    (1..=LONGEST).contains(&suffix.len()) && suffix.bytes().all(is_plain)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fine_tuned_model_is_named_like_openais() {
        let job = JobId::from("ftjob-0192aabbccddeeff0011223344556677");
        let name = fine_tuned_name("demo", "tandem", Some("pirate"), &job);
        assert_eq!(name, "ft:demo:tandem:pirate:44556677");
        assert_eq!(fine_tuned_name("demo", "tandem", None, &job), "ft:demo:tandem::44556677");
        assert_eq!(checkpoint_name(&name, 12), "ft:demo:tandem:pirate:44556677:ckpt-step-12");
    }

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for bad in ["", "..", ".hidden", "a/b", "a\\b", "a\0b", "%2e%2e", "ft:x", "-a", "ü"] {
            assert!(check_adapter_name(bad).is_err(), "{bad}");
        }
        assert!(check_adapter_name(&"a".repeat(65)).is_err());
        for good in ["a", "Pirate-2.1_b", &"a".repeat(64)] {
            assert!(check_adapter_name(good).is_ok(), "{good}");
        }
    }
}
