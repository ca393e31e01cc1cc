//! The committed API document is the router's own.

use std::path::Path;

/// `TANDEM_WRITE_OPENAPI=1 cargo test openapi` writes the file anew.
#[test]
fn the_committed_document_is_what_the_router_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    let mut document = tandem::api::openapi().to_pretty_json().expect("the document is JSON");
    document.push('\n');
    if std::env::var_os("TANDEM_WRITE_OPENAPI").is_some() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("the folder");
        std::fs::write(&file, &document).expect("the document can be written");
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == document,
        "openapi/openapi.json is stale; run `TANDEM_WRITE_OPENAPI=1 cargo test openapi`"
    );
}

#[test]
fn every_operation_says_what_it_is_and_no_path_is_a_wildcard() {
    let document = serde_json::to_value(tandem::api::openapi()).expect("the document is JSON");
    let paths = document["paths"].as_object().expect("paths");
    assert!(paths.contains_key("/v1/models/{model}"), "{:?}", paths.keys());
    for (path, item) in paths {
        assert!(!path.contains('*'), "{path}");
        for (method, operation) in item.as_object().expect("operations") {
            let named = |key: &str| operation[key].as_str().is_some_and(|text| !text.is_empty());
            assert!(named("operationId") && named("summary"), "{method} {path}");
        }
    }
}
