//! Which modules an adapter attaches to: PEFT's `target_modules` and the filters around it.
//!
//! PEFT `tuners/tuners_utils.py`, `check_target_module_exists` and `_maybe_include_all_linear_layers`.

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::error::{PeftError, Result};
use crate::domain::{BaseInfo, ModuleShape, SaveableModule};

/// `target_modules` or `exclude_modules`: names, or one pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// A regular expression that must match the whole module name; `all-linear` means every
    /// linear layer but the output head.
    Pattern(String),
    /// Module names, or the ends of module names.
    Names(Vec<String>),
}

/// The choice of modules, in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFilter {
    pub targets: Targets,
    pub exclude: Option<Targets>,
    /// Only these decoder layers.
    pub layers: Option<Vec<usize>>,
    /// Names of the list the layers live in, as `layers`; empty: any.
    pub layers_pattern: Vec<String>,
    /// Modules replaced whole, which get no matrices whatever else names them.
    pub saved: Vec<String>,
}

impl From<Targets> for ModuleFilter {
    fn from(targets: Targets) -> Self {
        let (layers_pattern, saved) = (Vec::new(), Vec::new());
        Self { targets, exclude: None, layers: None, layers_pattern, saved }
    }
}

/// A compiled [`Targets`].
enum Matcher {
    AllLinear,
    Names(Vec<String>),
    Whole(Regex),
}

impl Matcher {
    fn new(targets: &Targets) -> Result<Self> {
        match targets {
            Targets::Names(names) => Ok(Self::Names(names.clone())),
            Targets::Pattern(pattern) if pattern.eq_ignore_ascii_case("all-linear") => {
                Ok(Self::AllLinear)
            }
            Targets::Pattern(pattern) => Ok(Self::Whole(whole(pattern)?)),
        }
    }

    fn matches(&self, module: &ModuleShape) -> bool {
        match self {
            Self::AllLinear => module.layer.is_some(),
            Self::Names(names) => names.iter().any(|entry| ends_with_name(&module.name, entry)),
            Self::Whole(pattern) => pattern.is_match(&module.name),
        }
    }

    /// Whether the module is named in full: then it is chosen whatever its layer.
    fn is_full_name(&self, module: &ModuleShape) -> bool {
        matches!(self, Self::Names(names) if names.contains(&module.name))
    }
}

/// The modules of `base` that `filter` chooses, in forward order.
///
/// # Errors
/// [`PeftError::NoModule`] if there is none, [`PeftError::Pattern`] for an unusable pattern.
pub fn resolve_targets<'a>(
    filter: &ModuleFilter,
    base: &'a BaseInfo,
) -> Result<Vec<&'a ModuleShape>> {
    let targets = Matcher::new(&filter.targets)?;
    let exclude = filter.exclude.as_ref().map(Matcher::new).transpose()?;
    let chosen: Vec<_> = base
        .modules
        .iter()
        .filter(|module| !exclude.as_ref().is_some_and(|exclude| exclude.matches(module)))
        .filter(|module| !filter.saved.iter().any(|name| ends_with_name(&module.name, name)))
        .filter(|module| targets.matches(module))
        .filter(|module| targets.is_full_name(module) || filter.admits_layer(module))
        .collect();
    if chosen.is_empty() { Err(no_module(filter, base)) } else { Ok(chosen) }
}

/// The modules of `base` that `names` asks to replace whole, each by its name or the end of it.
///
/// # Errors
/// [`PeftError::NotSaveable`] for a name that fits none.
pub fn resolve_saved<'a>(names: &[String], base: &'a BaseInfo) -> Result<Vec<&'a SaveableModule>> {
    let find = |name: &String| {
        let found = base.saveable.iter().find(|module| ends_with_name(&module.name, name));
        found.ok_or_else(|| {
            let possible: Vec<&str> = base.saveable.iter().map(|module| &*module.name).collect();
            PeftError::NotSaveable { name: name.clone(), possible: possible.join(" and ") }
        })
    };
    let mut modules: Vec<&SaveableModule> = Vec::new();
    for name in names {
        // PEFT names a tied embedding twice, by its end and in full.
        let module = find(name)?;
        if modules.iter().all(|known| known.name != module.name) {
            modules.push(module);
        }
    }
    Ok(modules)
}

/// The modules a new adapter covers, and its rank at each.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraRanks {
    /// In forward order.
    pub modules: Vec<String>,
    /// Beside `modules`; empty where all are the same.
    pub ranks: Vec<usize>,
    /// The same for alpha.
    pub alphas: Vec<f64>,
}

impl LoraRanks {
    /// Chooses modules of `base`; the patterns beside `r` and `alpha` override them where one fits.
    ///
    /// # Errors
    /// As [`resolve_targets`]; also for a pattern that cannot be used.
    pub fn resolve(
        targets: &Targets,
        (r, rank_pattern): (usize, &[(String, usize)]),
        (alpha, alpha_pattern): (f64, &[(String, f64)]),
        base: &BaseInfo,
    ) -> Result<Self> {
        let chosen = resolve_targets(&targets.clone().into(), base)?;
        if let Targets::Names(names) = targets {
            let unused =
                |entry: &&String| !chosen.iter().any(|module| ends_with_name(&module.name, entry));
            if let Some(entry) = names.iter().find(unused) {
                return Err(no_module(&Targets::Names(vec![entry.clone()]).into(), base));
            }
        }
        let patterns = compile_patterns(rank_pattern)?;
        let rank = |module: &&ModuleShape| by_pattern(&patterns, &module.name).unwrap_or(r);
        let ranks: Vec<usize> = chosen.iter().map(rank).collect();
        let same = ranks.iter().all(|&rank| rank == r);
        let patterns = compile_patterns(alpha_pattern)?;
        let own = |module: &&ModuleShape| by_pattern(&patterns, &module.name).unwrap_or(alpha);
        let alphas: Vec<f64> = chosen.iter().map(own).collect();
        let common = alphas.iter().all(|&own| own == alpha);
        Ok(Self {
            modules: chosen.into_iter().map(|module| module.name.clone()).collect(),
            ranks: if same { Vec::new() } else { ranks },
            alphas: if common { Vec::new() } else { alphas },
        })
    }
}

impl ModuleFilter {
    fn admits_layer(&self, module: &ModuleShape) -> bool {
        let Some(layers) = &self.layers else { return true };
        let in_list = self.layers_pattern.is_empty()
            || self
                .layers_pattern
                .iter()
                .any(|list| module.name.split('.').any(|segment| segment == list));
        in_list && module.layer.is_some_and(|layer| layers.contains(&layer))
    }
}

/// The first value whose pattern fits the module: `(.*\.)?(key)$` in PEFT.
pub(super) fn by_pattern<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|&(_, value)| value)
}

/// Compiles the keys of `rank_pattern` or `alpha_pattern`.
pub(super) fn compile_patterns<T: Copy>(patterns: &[(String, T)]) -> Result<Vec<(Regex, T)>> {
    patterns
        .iter()
        .map(|(pattern, value)| Ok((whole(&format!(r"(?:.*\.)?(?:{pattern})"))?, *value)))
        .collect()
}

/// A pattern for the whole name. Linear time by construction, and bounded in size.
fn whole(pattern: &str) -> Result<Regex> {
    regex::RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(1 << 20).build().map_err(
        |source| PeftError::Pattern { pattern: pattern.to_owned(), source: Box::new(source) },
    )
}

fn ends_with_name(module: &str, entry: &str) -> bool {
    module.strip_suffix(entry).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn no_module(filter: &ModuleFilter, base: &BaseInfo) -> PeftError {
    let targets = match &filter.targets {
        Targets::Pattern(pattern) => format!("`{pattern}`"),
        Targets::Names(names) => format!("{names:?}"),
    };
    let example = base.modules.first().map_or_else(String::new, |module| module.name.clone());
    PeftError::NoModule { targets, base: base.name.to_string(), example }
}

#[cfg(test)]
mod tests {
    use super::super::testing::tiny_base;
    use super::*;

    fn chosen(filter: ModuleFilter) -> Vec<String> {
        let base = tiny_base();
        let modules = resolve_targets(&filter, &base).expect("modules");
        modules.into_iter().map(|module| module.name.clone()).collect()
    }

    fn names(names: &[&str]) -> Targets {
        Targets::Names(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn a_name_matches_whole_segments_only() {
        let modules = chosen(names(&["q_proj"]).into());
        assert_eq!(modules, ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]);
        let base = tiny_base();
        let error = resolve_targets(&names(&["proj"]).into(), &base).expect_err("no such segment");
        assert!(error.to_string().contains("named like"), "{error}");
    }

    #[test]
    fn all_linear_leaves_the_output_head_out() {
        let modules = chosen(Targets::Pattern("all-linear".to_owned()).into());
        assert!(modules.iter().all(|name| name != "lm_head"));
        assert_eq!(modules.len(), tiny_base().modules.len() - 1);
    }

    #[test]
    fn a_pattern_must_match_the_whole_name() {
        let pattern = r".*\.1\..*(q|v)_proj";
        let modules = chosen(Targets::Pattern(pattern.to_owned()).into());
        assert_eq!(modules.len(), 2);
        let base = tiny_base();
        assert!(resolve_targets(&Targets::Pattern("q_proj".to_owned()).into(), &base).is_err());
    }

    #[test]
    fn exclusions_and_layers_narrow_the_choice() {
        let filter = ModuleFilter {
            targets: names(&["q_proj", "v_proj"]),
            exclude: Some(names(&["layers.1.self_attn.v_proj"])),
            layers: Some(vec![1]),
            layers_pattern: vec!["layers".to_owned()],
            saved: Vec::new(),
        };
        assert_eq!(chosen(filter), ["model.layers.1.self_attn.q_proj"]);
    }

    #[test]
    fn a_full_name_is_chosen_whatever_its_layer() {
        let full = "model.layers.0.self_attn.v_proj";
        let filter =
            ModuleFilter { layers: Some(vec![1]), ..names(&[full, "self_attn.q_proj"]).into() };
        assert_eq!(chosen(filter), [full, "model.layers.1.self_attn.q_proj"]);
    }

    #[test]
    fn a_module_that_is_named_twice_is_saved_once() {
        let base = tiny_base();
        let name = base.saveable[0].name.clone();
        let end = name.rsplit('.').next().expect("a last part").to_owned();
        let modules = resolve_saved(&[end, name], &base).expect("a module that can be saved");
        assert_eq!(modules.len(), 1);
    }

    #[test]
    fn what_is_saved_whole_gets_no_matrices() {
        let saved = vec!["lm_head".to_owned()];
        let filter = ModuleFilter { saved, ..names(&["lm_head", "q_proj"]).into() };
        assert!(chosen(filter).iter().all(|name| name.ends_with("q_proj")));
    }

    #[test]
    fn the_first_fitting_pattern_decides() {
        let patterns = compile_patterns(&[
            ("layers.1.self_attn.q_proj".to_owned(), 2),
            ("q_proj".to_owned(), 6),
        ])
        .expect("patterns");
        assert_eq!(by_pattern(&patterns, "model.layers.1.self_attn.q_proj"), Some(2));
        assert_eq!(by_pattern(&patterns, "model.layers.0.self_attn.q_proj"), Some(6));
        assert_eq!(by_pattern(&patterns, "model.layers.0.self_attn.qq_proj"), None);
    }
}
