//! The schema's history: every file of `migrations/`, in order, inside the binary.

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// `(file name, text)`. Listed by hand, since sqlx's macro for it compiles every driver, SQLite's C
/// code included, a second time for the compiler's own use.
const FILES: [(&str, &str); 7] = [
    ("0001_files.sql", include_str!("../../migrations/0001_files.sql")),
    ("0002_jobs.sql", include_str!("../../migrations/0002_jobs.sql")),
    ("0003_job_events.sql", include_str!("../../migrations/0003_job_events.sql")),
    ("0004_adapters.sql", include_str!("../../migrations/0004_adapters.sql")),
    ("0005_checkpoints.sql", include_str!("../../migrations/0005_checkpoints.sql")),
    ("0006_idempotency.sql", include_str!("../../migrations/0006_idempotency.sql")),
    ("0007_served_check.sql", include_str!("../../migrations/0007_served_check.sql")),
];

/// What brings a database up to date.
pub(super) fn migrator() -> Migrator {
    Migrator::with_migrations(FILES.map(migration).to_vec())
}

/// The version before the first `_`, the description after it, as sqlx reads a file name.
fn migration((file, sql): (&'static str, &'static str)) -> Migration {
    let name = file.trim_end_matches(".sql");
    let (version, description) = name.split_once('_').expect("NUMBER_DESCRIPTION.sql");
    let version = version.parse().expect("a migration's number");
    let description = description.replace('_', " ").into();
    Migration::new(version, description, MigrationType::Simple, sql.into_sql_str(), false)
}

#[cfg(test)]
mod tests {
    use super::{FILES, migrator};

    #[test]
    fn every_file_is_listed_and_numbered_in_order() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let entries = std::fs::read_dir(folder).expect("the folder of migrations");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        assert_eq!(names, FILES.map(|(name, _)| name));
        let versions: Vec<_> = migrator().iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=FILES.len() as i64).collect::<Vec<_>>());
    }
}
