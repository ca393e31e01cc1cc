//! Identifiers as they appear on the wire: a prefix that names the kind, then a UUID version 7,
//! so that ids sort by the time they were made.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// A new identifier.
            pub fn generate() -> Self {
                Self(format!(concat!($prefix, "{}"), Uuid::now_v7().simple()))
            }

            /// The identifier as written on the wire.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<String> for $name {
            fn from(id: String) -> Self {
                Self(id)
            }
        }

        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                Self(id.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// An uploaded or produced file, `file-…`.
    FileId, "file-");
id!(
    /// A fine-tuning job, `ftjob-…`.
    JobId, "ftjob-");
id!(
    /// One event of a job, `ftevent-…`.
    EventId, "ftevent-");
id!(
    /// A checkpoint of a job, `ftckpt_…`.
    CheckpointId, "ftckpt_");
id!(
    /// One immutable generation of an adapter, `adapter-…`.
    AdapterId, "adapter-");
