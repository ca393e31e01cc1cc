//! Lists in pages, and times.

use sqlx::Row;

use super::{Store, StoreError, StoreResult};

/// A moment on the database's clock: microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// As the API writes times.
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }
}

/// By time of creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    Ascending,
    #[default]
    Descending,
}

/// Which part of a list is wanted.
#[derive(Clone, Debug)]
pub struct Page {
    /// The id of the last object already seen.
    pub after: Option<String>,
    pub limit: usize,
    pub order: Order,
}

impl Page {
    /// The first `limit`, newest first.
    pub fn newest(limit: usize) -> Self {
        Self { after: None, limit, order: Order::Descending }
    }
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Listed<T> {
    pub rows: Vec<T>,
    /// Whether the list goes on behind the last row.
    pub has_more: bool,
}

impl<T> Listed<T> {
    /// Of `limit + 1` rows asked for, the last only tells that there is one more.
    pub(super) fn from_one_too_many(mut rows: Vec<T>, limit: usize) -> Self {
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        Self { rows, has_more }
    }
}

/// Where a page begins: behind the row with this time and id.
pub(super) struct Cursor {
    pub at: i64,
    pub id: String,
}

impl Page {
    /// Completes `select … where …` to one page: `$1` and `$2` are the cursor, `$3` is the limit.
    pub(super) fn keyset(&self, select: &str) -> String {
        let (than, direction) = match self.order {
            Order::Ascending => (">", "asc"),
            Order::Descending => ("<", "desc"),
        };
        format!(
            "{select}
               and (created_at, id) {than} ($1, $2)
             order by created_at {direction}, id {direction}
             limit $3"
        )
    }

    /// One row more than asked for tells whether there is another page.
    pub(super) fn fetch_limit(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX - 1) + 1
    }
}

impl Store {
    /// The place of the row `page.after` names in `table`, or the very beginning.
    pub(super) async fn cursor(&self, table: &str, page: &Page) -> StoreResult<Cursor> {
        let Some(id) = page.after.clone() else {
            let at = if page.order == Order::Ascending { i64::MIN } else { i64::MAX };
            return Ok(Cursor { at, id: String::new() });
        };
        let query = self.dialect.sql(&format!(
            "select created_at from {table}
             where id = $1"
        ));
        let row = sqlx::query(query).bind(&*id).fetch_optional(&self.reader).await?;
        let row = row.ok_or_else(|| StoreError::UnknownCursor(id.clone()))?;
        Ok(Cursor { at: row.try_get("created_at")?, id })
    }
}
