//! Opening the database and bringing its schema up to date.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{Any, AnyConnection, AnyPool, Connection, Executor, Transaction};

use super::changes::Changes;
use super::dialect::Dialect;
use super::migrations::migrator;
use super::{Store, StoreError, StoreResult};

/// Earlier versions can corrupt a database in WAL mode.
const SQLITE_NEEDED: &str = "3.51.3";

/// Nobody waits longer for a connection: an answer "not now" beats a hanging request.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

const READERS: u32 = 4;
const POSTGRES_CONNECTIONS: u32 = 10;

impl Store {
    /// Opens `sqlite://PATH` (made if missing) or `postgres://…` and migrates it.
    ///
    /// # Errors
    /// [`StoreError::Url`] for any other address, [`StoreError::Open`] if the database cannot be
    /// reached, [`StoreError::Migrate`] if it was written by a newer version.
    pub async fn open(url: &str) -> StoreResult<Self> {
        sqlx::any::install_default_drivers();
        if let Some(path) = url.strip_prefix("sqlite://").filter(|path| !path.is_empty()) {
            return Self::open_sqlite(Path::new(path)).await;
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Self::open_postgres(url).await;
        }
        Err(StoreError::Url(without_password(url)))
    }

    async fn open_sqlite(path: &Path) -> StoreResult<Self> {
        let place = path.display().to_string();
        let url = sqlite_url(path).map_err(|source| StoreError::Open {
            place: place.clone(),
            source: sqlx::Error::Io(source),
        })?;
        let writer = connect(Dialect::Sqlite, &url, 1, &place).await?;
        let (found,): (String,) =
            sqlx::query_as("select sqlite_version()").fetch_one(&writer).await?;
        if version(&found) < version(SQLITE_NEEDED) {
            return Err(StoreError::SqliteTooOld { found, needed: SQLITE_NEEDED });
        }
        migrator().run(&writer).await?;
        let reader = connect(Dialect::Sqlite, &url, READERS, &place).await?;
        Ok(Self { dialect: Dialect::Sqlite, writer, reader, changes: Arc::new(Changes::local()) })
    }

    async fn open_postgres(url: &str) -> StoreResult<Self> {
        let place = without_password(url);
        let pool = connect(Dialect::Postgres, url, POSTGRES_CONNECTIONS, &place).await?;
        migrator().run(&pool).await?;
        let changes = Arc::new(Changes::with_listener(url.to_owned()));
        Ok(Self { dialect: Dialect::Postgres, writer: pool.clone(), reader: pool, changes })
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it does not.
    pub async fn ping(&self) -> StoreResult<()> {
        self.reader.execute("select 1").await?;
        Ok(())
    }

    /// Closes every connection; SQLite folds its log into the database file.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }

    /// A transaction that will write; dropped without [`Store::commit`] it never happened.
    pub(super) async fn begin(&self) -> StoreResult<Transaction<'static, Any>> {
        Ok(self.writer.begin_with(self.dialect.begin()).await?)
    }

    /// Commits a change that others may be waiting for, and wakes them.
    pub(super) async fn commit(&self, mut tx: Transaction<'static, Any>) -> StoreResult<()> {
        if let Some(notify) = self.dialect.notify() {
            sqlx::query(notify).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        self.changes.announce();
        Ok(())
    }
}

async fn connect(dialect: Dialect, url: &str, most: u32, place: &str) -> StoreResult<AnyPool> {
    let failed = |source| StoreError::Open { place: place.to_owned(), source };
    let options = AnyConnectOptions::from_str(url).map_err(failed)?;
    let pool = AnyPoolOptions::new()
        .max_connections(most)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                for statement in dialect.session() {
                    connection.execute(*statement).await?;
                }
                Ok(())
            })
        })
        .connect_with(options.clone())
        .await;
    match pool {
        Err(sqlx::Error::PoolTimedOut) => Err(failed(why_no_connection(&options).await)),
        pool => pool.map_err(failed),
    }
}

/// A pool tries again until its time is over and forgets what was wrong; one connection says it.
async fn why_no_connection(options: &AnyConnectOptions) -> sqlx::Error {
    let one = AnyConnection::connect_with(options);
    match tokio::time::timeout(ACQUIRE_TIMEOUT, one).await {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => sqlx::Error::PoolTimedOut,
    }
}

/// sqlx wants a URL; a path may hold characters that mean something there.
fn sqlite_url(path: &Path) -> std::io::Result<String> {
    let absolute: PathBuf = std::path::absolute(path)?;
    let escaped: String = absolute
        .to_string_lossy()
        .chars()
        .map(|c| match c {
            '%' => "%25".into(),
            '?' => "%3F".into(),
            '#' => "%23".into(),
            other => other.to_string(),
        })
        .collect();
    Ok(format!("sqlite://{escaped}?mode=rwc"))
}

/// An address fit for logs and errors.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let name = user.split_once(':').map_or(user, |(name, _)| name);
            format!("{scheme}://{name}@{host}")
        }
        None => url.to_owned(),
    }
}

fn version(text: &str) -> Vec<u32> {
    text.split('.').filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{version, without_password};

    #[test]
    fn an_address_is_shown_without_its_password() {
        assert_eq!(without_password("postgres://me:se@cret@db/x"), "postgres://me@db/x");
        assert_eq!(without_password("postgres:///x"), "postgres:///x");
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(version("3.100.0") > version("3.51.3"));
    }
}
