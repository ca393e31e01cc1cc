//! The differences between the two databases, all of them.

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// A query's text for this database: `{now}` is the database's clock in microseconds,
    /// `{skip_locked}` passes over rows that another claim is looking at.
    ///
    /// Queries are literals of this module tree; values always travel as parameters.
    pub fn sql(self, query: &str) -> SqlStr {
        let text = query.replace("{now}", self.now()).replace("{skip_locked}", self.skip_locked());
        AssertSqlSafe(text).into_sql_str()
    }

    fn now(self) -> &'static str {
        match self {
            Self::Sqlite => "cast(unixepoch('subsec') * 1000000 as integer)",
            Self::Postgres => "(extract(epoch from clock_timestamp()) * 1000000)::bigint",
        }
    }

    /// SQLite has one writer at a time, so nobody else can be looking.
    fn skip_locked(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => "for update skip locked",
        }
    }

    /// Opens a transaction that will write. SQLite must take its lock at once: a transaction that
    /// read first and then cannot write fails without waiting.
    pub fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "begin immediate",
            Self::Postgres => "begin",
        }
    }

    /// What each new connection is told.
    pub fn session(self) -> &'static [&'static str] {
        match self {
            Self::Sqlite => &[
                "pragma journal_mode = wal",
                "pragma synchronous = full",
                "pragma foreign_keys = on",
                "pragma busy_timeout = 5000",
            ],
            Self::Postgres => &[
                "set statement_timeout = '30s'",
                "set lock_timeout = '10s'",
                "set idle_in_transaction_session_timeout = '60s'",
            ],
        }
    }

    /// Tells other servers on the same database that something changed, when the transaction
    /// commits. With SQLite there are none: the data folder is locked.
    pub fn notify(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some("select pg_notify('tandem', '')"),
        }
    }
}
