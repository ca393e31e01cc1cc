//! Plain data that both halves of the program speak: no behaviour beyond checking itself.
//!
//! Nothing here knows HTTP, SQL, tokenizers or tensors.

pub mod adapter;
pub mod base;
pub mod generation;
pub mod ids;
pub mod job;
pub mod picture;
mod recipe;
pub mod sampling;
pub mod serving;
pub mod training;

pub use adapter::{AdapterSite, AdapterWeights, SavedModule};
pub use base::{BaseInfo, ModuleShape, SaveableModule, TensorShape, TrainingCost, WeightFormat};
pub use generation::{FinishReason, GenerationRequest, PromptToken, SampledToken, TokenLogprob};
pub use ids::{AdapterId, CheckpointId, EventId, FileId, JobId};
pub use job::JobStatus;
pub use picture::{
    MAX_CONVERSATION_BYTES, Picture, PictureShelf, PlacedPicture, StoredPicture, VisionInfo,
};
pub use recipe::{RECIPES, Recipe};
pub use sampling::SamplingParams;
pub use serving::{KvFormat, Speculation};
pub use training::{
    BatchLimits, EarlyStopping, Example, ExamplePicture, Hyperparameters, IGNORE_INDEX, LoraSpec,
    LossNormalization, LrScheduler, OptimizerKind, ServedCheck, Survey, TrainMetrics,
};
