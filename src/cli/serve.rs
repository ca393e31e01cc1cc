//! `tandem serve`: start the server, say where it is and what to try, run until a signal.

use super::Failure;
use crate::app::App;
use crate::config::{Config, ServeOptions};
use crate::telemetry;

/// Runs the server until it is told to stop.
///
/// # Errors
/// A sentence and an exit code: 2 or 78 for settings, 78 for a model file, 1 for a port or a
/// folder in use, 70 if the device was lost.
pub(super) fn run(options: ServeOptions) -> Result<(), Failure> {
    let config = options.resolve().map_err(|error| Failure::new(error.exit_code(), error))?;
    telemetry::init(config.log_json);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(1, format!("cannot start the runtime: {error}")))?;
    runtime.block_on(async {
        let app =
            App::start(&config).await.map_err(|error| Failure::new(error.exit_code(), error))?;
        print_welcome(&config, &app);
        app.run().await.map_err(|error| Failure::new(error.exit_code(), error))
    })
}

/// What a newcomer needs next, on standard output; log lines go to standard error.
fn print_welcome(config: &Config, app: &App) {
    let url = format!("http://{}", app.address());
    let model = &config.models[0].name;
    let key = if config.api_keys.is_empty() {
        ""
    } else {
        " \\\n    -H \"Authorization: Bearer $TANDEM_API_KEY\""
    };
    println!(
        r#"
Tandem serves `{model}` on {url}

  dashboard   {url}/
  API         {url}/docs

Complete a prompt:
  curl {url}/v1/completions{key} -H 'Content-Type: application/json' \
    -d '{{"model": "{model}", "prompt": "Once upon a time", "max_tokens": 60}}'

Ask a question:
  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' \
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Who are you?"}}]}}'

Teach it your own data (one JSON object per line, {{"messages": […]}} or {{"prompt": …, "completion": …}}):
  curl {url}/v1/files{key} -F purpose=fine-tune -F file=@mydata.jsonl
  curl {url}/v1/fine_tuning/jobs{key} -H 'Content-Type: application/json' \
    -d '{{"model": "{model}", "training_file": "file-…"}}'
"#
    );
}
