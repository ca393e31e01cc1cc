//! "Trained as served": the fingerprints an adapter made here carries, and their check.

use serde::{Deserialize, Serialize};

use super::error::{PeftError, Result};

/// What an adapter depends on, each as the hex SHA-256 of its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprints {
    /// Configuration and weights of the base model, quantisation included.
    pub base: String,
    pub tokenizer: String,
    /// `None` where the base has no chat template.
    pub template: Option<String>,
}

/// The content of `tandem.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The name the base model was served under.
    pub base_model: String,
    pub fingerprints: Fingerprints,
    /// The job that trained it.
    pub job: Option<String>,
    /// The optimiser step it was taken after.
    pub step: Option<u64>,
}

impl Provenance {
    /// Parses `tandem.json`.
    ///
    /// # Errors
    /// [`PeftError::Json`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes)
            .map_err(|source| PeftError::Json { file: super::PROVENANCE_FILE, source })
    }

    /// Refuses an adapter that was trained on something else than what is served.
    ///
    /// # Errors
    /// [`PeftError::Mismatch`] names the first difference.
    pub fn check(&self, served: &Fingerprints) -> Result<()> {
        let trained = &self.fingerprints;
        same("base model", &trained.base, &served.base)?;
        same("tokenizer", &trained.tokenizer, &served.tokenizer)?;
        same(
            "chat template",
            trained.template.as_deref().unwrap_or("none"),
            served.template.as_deref().unwrap_or("none"),
        )
    }
}

fn same(what: &'static str, trained: &str, served: &str) -> Result<()> {
    if trained == served {
        return Ok(());
    }
    let short = |text: &str| text.chars().take(12).collect();
    Err(PeftError::Mismatch { what, trained: short(trained), served: short(served) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_here() -> Provenance {
        Provenance {
            base_model: "demo".to_owned(),
            fingerprints: Fingerprints {
                base: "b".repeat(64),
                tokenizer: "t".repeat(64),
                template: None,
            },
            job: Some("ftjob-1".to_owned()),
            step: Some(7),
        }
    }

    #[test]
    fn the_same_base_tokenizer_and_template_are_accepted() {
        let provenance = made_here();
        assert!(provenance.check(&provenance.fingerprints).is_ok());
    }

    #[test]
    fn each_difference_is_refused_by_its_name() {
        let provenance = made_here();
        let served = &provenance.fingerprints;
        for (what, changed) in [
            ("base model", Fingerprints { base: "x".to_owned(), ..served.clone() }),
            ("tokenizer", Fingerprints { tokenizer: "x".to_owned(), ..served.clone() }),
            ("chat template", Fingerprints { template: Some("x".to_owned()), ..served.clone() }),
        ] {
            let error = provenance.check(&changed).expect_err("a difference");
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
