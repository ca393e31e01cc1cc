//! The API document and the page that shows it, from this server alone.

use axum::Router;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::AppState;

/// The document before any route: what it is about, and the key.
pub(super) fn description() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Tandem")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "OpenAI-style completions, and fine-tuning of the model that answers them.",
        ))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").build()))
        .build();
    let bearer = SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A key of `--api-key`; a server without keys needs none."))
            .build(),
    );
    OpenApiBuilder::new()
        .info(info)
        .components(Some(ComponentsBuilder::new().security_scheme("key", bearer).build()))
        .security(Some([SecurityRequirement::new::<_, [&str; 0], &str>("key", [])]))
        .build()
}

/// `/docs` and `/openapi.json`.
pub(super) fn routes(document: OpenApi) -> Router<AppState> {
    let config = Config::default().try_it_out_enabled(true).persist_authorization(false);
    SwaggerUi::new("/docs").url("/openapi.json", document).config(config).into()
}
