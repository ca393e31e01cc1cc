//! Recipes: the data form, template and settings of well-known fine-tunes, by name.

use serde_json::{Map, Value};

/// One of them. Settings are those of the original where it states them; what it leaves open is
/// left to the server.
#[derive(Debug)]
pub struct Recipe {
    pub name: &'static str,
    /// Whose it is, in a sentence.
    pub about: &'static str,
    /// What a line of the training file holds.
    pub data: &'static str,
    /// The template preset to serve the base with, so that questions look as in training.
    pub template: Option<&'static str>,
    settings: &'static str,
}

/// Every recipe, by name.
pub const RECIPES: [Recipe; 5] = [
    Recipe {
        name: "alpaca",
        about: "Stanford Alpaca (Taori et al. 2023). The rate is that of the original, which \
                trained all weights; LoRA alone learns faster with 2e-4",
        data: "`instruction`, `input` (may be empty) and `output`",
        template: Some("alpaca"),
        settings: r#"{"hyperparameters": {
            "n_epochs": 3, "batch_size": 128, "learning_rate": 2e-5, "lr_scheduler": "cosine",
            "warmup_ratio": 0.03, "weight_decay": 0.0, "max_seq_length": 512}}"#,
    },
    Recipe {
        name: "guanaco-qlora",
        about: "Guanaco 7B (Dettmers et al. 2023, \"QLoRA\", table 9), on a base in NF4. The \
                constant rate has no warm-up, as in the published runs",
        data: "`messages`, or `text` of the form `### Human: …### Assistant: …`; loss on all of it",
        template: Some("guanaco"),
        settings: r#"{"quantization": "nf4",
            "lora": {"r": 64, "alpha": 16, "dropout": 0.1, "target_modules": "all-linear"},
            "hyperparameters": {
                "max_steps": 1875, "micro_batch_size": 1, "gradient_accumulation_steps": 16,
                "learning_rate": 2e-4, "lr_scheduler": "constant", "warmup_steps": 0,
                "max_grad_norm": 0.3, "weight_decay": 0.0, "adam_beta2": 0.999,
                "optimizer": "paged_adamw", "max_seq_length": 528, "train_on": "all"}}"#,
    },
    Recipe {
        name: "llava-lora",
        about: "LLaVA 1.5 (Liu et al. 2023), its instruction tuning with LoRA: the projector is \
                trained whole beside it, at a tenth of its rate, and the vision tower not at all",
        data: "`messages`; a user shows pictures in `image_url` parts, each in a data URL",
        template: Some("llava-v1"),
        settings: r#"{
            "lora": {"r": 128, "alpha": 256, "dropout": 0.05, "target_modules": "all-linear",
                "modules_to_save": ["multi_modal_projector"]},
            "hyperparameters": {
                "n_epochs": 1, "batch_size": 128, "learning_rate": 2e-4,
                "modules_to_save_lr_ratio": 0.1, "lr_scheduler": "cosine", "warmup_ratio": 0.03,
                "weight_decay": 0.0, "max_seq_length": 2048}}"#,
    },
    Recipe {
        name: "mpt-instruct",
        about: "MPT-7B-Instruct (MosaicML 2023): questions and answers in the form of Dolly, with the \
                settings of LLM Foundry's mpt-7b_dolly_sft. They trained all weights; LoRA learns faster \
                with 2e-4",
        data: "`messages`, or `prompt` and `completion`",
        template: Some("dolly"),
        settings: r#"{"hyperparameters": {
            "n_epochs": 2, "batch_size": 48, "learning_rate": 5e-6, "lr_scheduler": "linear",
            "warmup_steps": 50, "weight_decay": 0.0, "adam_beta2": 0.999, "max_grad_norm": 1.0,
            "max_seq_length": 2048}}"#,
    },
    Recipe {
        name: "mpt-storywriter",
        about: "MPT-7B-StoryWriter (MosaicML 2023): whole books, for a base with ALiBi and a \
                context of 65,536 tokens; give `max_seq_length` for a shorter one",
        data: "`text`",
        template: None,
        settings: r#"{"hyperparameters": {
            "n_epochs": 1, "micro_batch_size": 1, "max_seq_length": 65536}}"#,
    },
];

impl Recipe {
    /// The recipe of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        RECIPES.iter().find(|recipe| recipe.name == name)
    }

    /// The fields of a job request that it settles; hyperparameters stand at the top.
    pub fn settings(&self) -> Map<String, Value> {
        serde_json::from_str(self.settings).expect("recipes are written as JSON")
    }
}
