//! `tandem convert`: a model to another format, an adapter merged into it.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::app::{Conversion, convert, convert_adapter};
use crate::config::ModelOption;
use crate::telemetry;

/// What `tandem convert` takes.
#[derive(Args, Clone, Debug)]
pub struct ConvertOptions {
    /// The model: a Hugging Face folder, a GGUF file, or `demo`.
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Adapter to merge into the weights: a PEFT folder or a GGUF file.
    #[arg(long, value_name = "PATH")]
    adapter: Option<PathBuf>,
    /// Write the adapter by itself, as a GGUF file or a PEFT folder.
    #[arg(long)]
    adapter_only: bool,
    /// What to write: a file that ends in .gguf, or a folder for safetensors. Of a model that sees, a
    /// second file beside it, `mmproj-` before its name, gets the vision tower.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Type of the matrices: f32, f16 or bf16, and for GGUF also q8_0, q4_0, q4_1, q5_0, q5_1 and
    /// q2_k to q6_k [default: bf16 for a folder, q8_0 for GGUF].
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Compute threads [default: one per core].
    #[arg(long, env = "TANDEM_THREADS", value_name = "N")]
    threads: Option<usize>,
}

/// Converts, and says how the result compares with its source.
///
/// # Errors
/// Exit code 2 for a source that is not there, 78 for a model or adapter that cannot be used, 1 for
/// a target that cannot be written.
pub(super) fn run(options: ConvertOptions) -> Result<(), Failure> {
    telemetry::init(false);
    let source = ModelOption::parse(&options.source)
        .map_err(|error| Failure::new(error.exit_code(), error.given_as("SOURCE")))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let merged = options.adapter.is_some();
    let conversion = Conversion {
        source,
        adapter: options.adapter,
        out: options.out,
        kind: options.kind,
        threads: options.threads.unwrap_or(cores).max(1),
    };
    if options.adapter_only {
        let bytes =
            convert_adapter(&conversion).map_err(|error| Failure::new(error.exit_code(), error))?;
        println!("wrote {}: {:.1} MB", conversion.out.display(), bytes as f64 / 1e6);
        return Ok(());
    }
    let converted = convert(&conversion, |comparison| {
        println!(
            "{}: KL {:.2e} nats, top-1 agreement {:.1} % over {} tokens",
            if merged { "merged against unmerged" } else { "converted against source" },
            comparison.kl,
            100.0 * comparison.agreement,
            comparison.tokens
        );
    })
    .map_err(|error| Failure::new(error.exit_code(), error))?;
    for (tensor, kind) in &converted.written.fallbacks {
        println!("{tensor}: rows are no whole {} blocks; {}", converted.kind.name(), kind.name());
    }
    let eyes = converted.eyes.iter().map(|(path, written)| (path, written));
    for (path, written) in eyes.chain([(&conversion.out, &converted.written)]) {
        println!(
            "wrote {}: {} tensors, {:.1} MB",
            path.display(),
            written.tensors,
            written.bytes as f64 / 1e6
        );
    }
    Ok(())
}
