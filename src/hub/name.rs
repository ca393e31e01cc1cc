//! `ORG/NAME[/FILE.gguf][@REVISION]`, the part of a source after `hf:`.

use super::HubError;

/// A model on the hub, at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    pub organization: String,
    pub name: String,
    /// A GGUF file of it; none: the safetensors model.
    pub file: Option<String>,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl HubModel {
    /// Reads what follows `hf:`.
    ///
    /// # Errors
    /// [`HubError::Name`] for anything that is not of that form; no part can leave a folder.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let (repository, revision) = text.rsplit_once('@').unwrap_or((text, "main"));
        let parts: Vec<&str> = repository.split('/').collect();
        let (organization, name, file) = match parts[..] {
            [organization, name] => (organization, name, None),
            [organization, name, file] => (organization, name, Some(file)),
            _ => return Err(HubError::Name),
        };
        let named = [organization, name, revision].into_iter().chain(file);
        if !named.into_iter().all(plain) || file.is_some_and(|file| !file.ends_with(".gguf")) {
            return Err(HubError::Name);
        }
        Ok(Self {
            organization: organization.to_owned(),
            name: name.to_owned(),
            file: file.map(str::to_owned),
            revision: revision.to_owned(),
        })
    }

    /// What the model is called where no name is given.
    pub fn short_name(&self) -> &str {
        match &self.file {
            Some(file) => file.trim_end_matches(".gguf"),
            None => &self.name,
        }
    }
}

impl std::fmt::Display for HubModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.organization, self.name)
    }
}

/// Whether `part` is a plain name of a file or folder, which leads nowhere else.
pub fn plain(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !part.is_empty() && part.len() < 200 && !part.starts_with('.') && part.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_an_organization_and_may_have_a_file_and_a_revision() {
        let model = HubModel::parse("org/name").expect("a name");
        assert_eq!((model.to_string(), model.revision.as_str()), ("org/name".into(), "main"));
        let model = HubModel::parse("org/name/x.Q4_0.gguf@v1").expect("a name");
        assert_eq!((model.file.as_deref(), model.short_name()), (Some("x.Q4_0.gguf"), "x.Q4_0"));
        assert_eq!(model.revision, "v1");
        for name in ["name", "../x/y", "org/..", "org/name@../../etc", "org/name/x.bin", "a/b/c/d"]
        {
            assert!(HubModel::parse(name).is_err(), "{name}");
        }
    }
}
