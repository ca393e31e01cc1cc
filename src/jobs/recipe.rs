//! A recipe's settings under those of a request: what the request says stands.

use serde_json::{Map, Value, json};

use super::fields::{Checked, InvalidRequest};
use crate::domain::{RECIPES, Recipe};

/// Fields that say the same thing in different ways: a request that has one of them has no need of
/// the recipe's others.
const ALTERNATIVES: [&[&str]; 4] = [
    &["learning_rate", "learning_rate_multiplier"],
    &["warmup_steps", "warmup_ratio"],
    &["batch_size", "micro_batch_size", "gradient_accumulation_steps"],
    &["n_epochs", "max_steps"],
];

/// The body with the settings of its `recipe`, if it names one.
pub(super) fn with_recipe(mut body: Map<String, Value>) -> Checked<Map<String, Value>> {
    let name = match body.shift_remove("recipe") {
        None | Some(Value::Null) => return Ok(body),
        Some(name) => name,
    };
    let recipe = name.as_str().and_then(Recipe::named).ok_or_else(|| {
        let known = RECIPES.map(|recipe| recipe.name).join(", ");
        InvalidRequest::value("recipe", format!("`recipe` must be one of {known}"))
    })?;
    for (key, value) in recipe.settings() {
        match (&*key, value) {
            ("hyperparameters", Value::Object(settings)) => {
                fill(hyperparameters(&mut body), settings);
            }
            ("lora", Value::Object(settings)) => {
                let lora = body.entry("lora").or_insert_with(|| json!({}));
                // An adapter to go on from has its shape already.
                let shaped = lora.get("init_adapter").is_some_and(|adapter| !adapter.is_null());
                fill(lora.as_object_mut().filter(|_| !shaped), settings);
            }
            (_, value) => {
                body.entry(key).or_insert(value);
            }
        }
    }
    Ok(body)
}

/// Where the request keeps its hyperparameters; `None` where something else stands in their place,
/// which is refused when it is read.
fn hyperparameters(body: &mut Map<String, Value>) -> Option<&mut Map<String, Value>> {
    if body.get("hyperparameters").is_some_and(|old| !old.is_null()) {
        return body.get_mut("hyperparameters")?.as_object_mut();
    }
    let mut place = body.entry("method").or_insert(Value::Null);
    if place.is_null() {
        *place = json!({"type": "supervised"});
    }
    for key in ["supervised", "hyperparameters"] {
        place = place.as_object_mut()?.entry(key).or_insert(Value::Null);
        if place.is_null() {
            *place = json!({});
        }
    }
    place.as_object_mut()
}

fn fill(given: Option<&mut Map<String, Value>>, settings: Map<String, Value>) {
    let Some(given) = given else { return };
    let said = |key: &str| {
        let alternatives = ALTERNATIVES.iter().find(|keys| keys.contains(&key));
        alternatives.copied().unwrap_or(&[key]).iter().any(|key| given.contains_key(*key))
    };
    let missing: Vec<_> = settings.into_iter().filter(|(key, _)| !said(key)).collect();
    given.extend(missing);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::JobRequest;

    fn body(more: Value) -> Map<String, Value> {
        let mut body = json!({"model": "demo", "training_file": "file-1"});
        let body = body.as_object_mut().expect("an object");
        body.extend(more.as_object().expect("an object").clone());
        body.clone()
    }

    #[test]
    fn every_recipe_is_a_request() {
        for recipe in &RECIPES {
            let request = JobRequest::parse(body(json!({"recipe": recipe.name})));
            let asked = request.expect(recipe.name).hyperparameters;
            assert!(asked.max_seq_length.is_some(), "{}", recipe.name);
        }
    }

    #[test]
    fn what_a_request_says_stands() {
        let more = json!({
            "recipe": "guanaco-qlora", "quantization": null, "lora": {"r": 8},
            "hyperparameters": {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 2.0},
        });
        let request = JobRequest::parse(body(more)).expect("a good request");
        let asked = &request.hyperparameters;
        assert_eq!(
            (asked.max_steps, asked.micro_batch_size, asked.learning_rate),
            (None, None, None)
        );
        assert_eq!((asked.batch_size, asked.max_grad_norm), (Some(4), Some(0.3)));
        assert!(asked.train_on_all && request.quantization.is_none());
        assert_eq!(request.lora.shown(None)["r"], 8);
    }

    #[test]
    fn an_unknown_recipe_is_refused_with_the_list_of_known_ones() {
        for recipe in [json!("ratatouille"), json!(7)] {
            let error = JobRequest::parse(body(json!({"recipe": recipe}))).expect_err("unknown");
            assert_eq!(error.param, "recipe");
            assert!(error.reason.contains("alpaca, guanaco-qlora"), "{}", error.reason);
        }
    }
}
