//! `tandem recipes`: well-known fine-tunes by name, and what each sets.

use clap::Args;
use serde_json::{Value, json};

use super::Failure;
use crate::domain::{RECIPES, Recipe};

/// What `tandem recipes` takes.
#[derive(Args, Clone, Debug)]
pub struct RecipesOptions {
    /// Show this one alone.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the recipes.
///
/// # Errors
/// Exit code 2 for a name that none has.
pub(super) fn run(options: &RecipesOptions) -> Result<(), Failure> {
    let chosen = |recipe: &&Recipe| options.name.as_deref().is_none_or(|name| name == recipe.name);
    let chosen: Vec<&Recipe> = RECIPES.iter().filter(chosen).collect();
    if chosen.is_empty() {
        let known = RECIPES.map(|recipe| recipe.name).join(", ");
        return Err(Failure::new(2, format!("there is no such recipe; known are {known}")));
    }
    if options.json {
        println!("{:#}", chosen.iter().map(|recipe| object(recipe)).collect::<Value>());
        return Ok(());
    }
    let cards: Vec<String> = chosen.iter().map(|recipe| card(recipe)).collect();
    println!(
        "{}\nUse one with `tandem jobs create --recipe NAME`; what else is said stands.",
        cards.join("\n")
    );
    Ok(())
}

fn object(recipe: &Recipe) -> Value {
    json!({
        "name": recipe.name, "about": recipe.about, "data": recipe.data,
        "template": recipe.template, "settings": recipe.settings(),
    })
}

fn card(recipe: &Recipe) -> String {
    let mut card = format!("{}\n  {}.\n  lines: {}\n", recipe.name, recipe.about, recipe.data);
    if let Some(template) = recipe.template {
        card += &format!("  serve: --model SOURCE,template={template}\n");
    }
    for (key, value) in recipe.settings() {
        let fields = value.as_object().map(|fields| {
            let field = |(key, value): (&String, &Value)| format!("{key} {value}");
            fields.iter().map(field).collect::<Vec<_>>().join(", ").replace('"', "")
        });
        let value = fields.unwrap_or_else(|| value.as_str().unwrap_or_default().to_owned());
        card += &format!("  {key}: {value}\n");
    }
    card
}
