//! Holds each module to the picture in `src/lib.rs`: who may import whom, where `unsafe`, SQL and
//! HTTP status codes may stand.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may import besides itself. Data flows one way: left imports right.
const ALLOWED: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("cli", &["app", "bench", "config", "demo", "domain", "telemetry"]),
    (
        "app",
        &[
            "api",
            "artifacts",
            "backend",
            "catalog",
            "config",
            "demo",
            "domain",
            "engine",
            "gguf",
            "jobs",
            "model",
            "peft",
            "pictures",
            "store",
            "text",
            "worker",
        ],
    ),
    ("config", &["domain", "hub"]),
    ("hub", &[]),
    ("telemetry", &[]),
    ("api", &["artifacts", "catalog", "domain", "engine", "jobs", "store", "text", "worker"]),
    ("engine", &["catalog", "domain", "pictures", "text", "worker"]),
    ("jobs", &["artifacts", "catalog", "domain", "peft", "store", "text", "worker"]),
    ("catalog", &["artifacts", "domain", "peft", "pictures", "store", "text"]),
    ("store", &["domain"]),
    ("artifacts", &["domain"]),
    ("worker", &["backend", "domain", "model", "sample", "train"]),
    ("train", &["backend", "domain", "model"]),
    ("bench", &["backend", "domain", "kernels", "model"]),
    ("demo", &["backend", "domain", "model", "text", "train"]),
    ("sample", &["domain"]),
    ("model", &["backend", "domain", "gguf"]),
    ("backend", &["domain", "kernels"]),
    ("kernels", &[]),
    ("peft", &["domain"]),
    ("gguf", &[]),
    ("pictures", &["domain"]),
    ("text", &["domain", "gguf"]),
    ("domain", &[]),
];

/// Where NVIDIA's libraries are called, which are foreign code behind pointers.
const DOORS: [&str; 2] = ["backend/cuda/compiler.rs", "backend/cuda/driver.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Every `.rs` file under `src`, with the module it belongs to and its text.
fn sources() -> Vec<(String, PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is UTF-8");
                found.push((module_of(&path), path, text));
            }
        }
    }
    found
}

fn module_of(path: &Path) -> String {
    let inner = path.strip_prefix(root().join("src")).expect("a file under src");
    let first = inner.components().next().expect("a first component").as_os_str();
    Path::new(first).file_stem().expect("a name").to_string_lossy().into_owned()
}

/// The part of a file before its unit tests, which may reach further.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

/// The modules named after `crate::` in a file, comments left out.
fn imports(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in without_tests(text).lines().filter(|line| !line.trim_start().starts_with("//")) {
        for rest in line.split("crate::").skip(1) {
            if let Some(group) = rest.strip_prefix('{') {
                let parts = group.split([',', '}']).map(|part| part.trim());
                names.extend(parts.map(|part| part.split("::").next().unwrap_or("").to_owned()));
            } else {
                let end =
                    rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                names.push(rest[..end].to_owned());
            }
        }
    }
    names
}

#[test]
fn modules_import_only_what_lies_below_them() {
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for (module, path, text) in sources().iter().filter(|(module, ..)| module != "lib") {
        let Some(may) = allowed.get(module.as_str()) else {
            wrong.push(format!("{}: module `{module}` is not on the map", path.display()));
            continue;
        };
        for import in imports(text) {
            let known = allowed.contains_key(import.as_str());
            if known && import != *module && !may.contains(&import.as_str()) {
                wrong.push(format!("{}: `{module}` imports `{import}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "the one-way flow is broken:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_stays_in_the_kernels() {
    for (module, path, text) in sources() {
        let code = without_tests(&text);
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let unsafe_lines = lines.filter(|line| line.contains("unsafe ")).count();
        let may = module == "kernels" || DOORS.iter().any(|door| path.ends_with(door));
        assert!(unsafe_lines == 0 || may, "{} holds unsafe code", path.display());
    }
}

#[test]
fn sql_stays_in_the_store_and_async_above_the_handle() {
    for (module, path, text) in sources() {
        let code = without_tests(&text);
        assert!(!code.contains("sqlx::") || module == "store", "{} speaks SQL", path.display());
        let below = ["worker", "train", "sample", "model", "backend", "kernels"];
        let handle = path.ends_with("worker/handle.rs");
        let awaits = code.contains(".await");
        assert!(
            !awaits || handle || !below.contains(&module.as_str()),
            "{} awaits below the handle",
            path.display()
        );
        assert!(!code.contains("StatusCode") || module == "api", "{} knows HTTP", path.display());
    }
}

#[test]
fn clients_speak_to_the_server_and_know_nothing_of_it() {
    let clients = root().join("src/cli/client");
    for (_, path, text) in sources().iter().filter(|(_, path, _)| path.starts_with(&clients)) {
        for import in imports(text) {
            assert_eq!(import, "cli", "{} reaches past the HTTP API", path.display());
        }
    }
}

#[test]
fn files_stay_readable() {
    for (_, path, text) in sources() {
        let lines = text.lines().count();
        assert!(
            lines <= 600,
            "{} has {lines} lines; look for the second idea in it",
            path.display()
        );
    }
}
