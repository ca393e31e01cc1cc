//! A private Postgres for this run of the tests, from the machine's own binaries.
//!
//! It listens on a Unix socket in its own temporary folder and nowhere else. A shell watches over
//! it: when the tests end, however they end, the pipe to that shell closes, and it stops the server
//! and removes the folder.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};

const MISSING: &str = "the tests need Postgres binaries (initdb, postgres, pg_isready) in PATH or in \
                       /usr/lib/postgresql/*/bin; on Debian: apt-get install postgresql";

/// Prepares the server, prints its folder when it answers, and waits for the tests to end. An empty
/// cluster is made once and copied from then on: a test may run in a process of its own.
const WATCHER: &str = r#"
set -e
dir=$(mktemp -d /tmp/tandem-postgres.XXXXXX)
trap 'rm -rf "$dir"' EXIT
version=$("$BIN/postgres" --version | tr -c 'A-Za-z0-9.\n' '-')
template=/tmp/tandem-template-$(id -u)-$version
if ! [ -O "$template/PG_VERSION" ]; then
    "$BIN/initdb" -D "$dir/new" -U tandem -A trust -E UTF8 --locale=C --no-sync > "$dir/log" 2>&1 \
        || { cat "$dir/log" >&2; exit 1; }
    mv -T "$dir/new" "$template" 2>/dev/null || true
fi
cp -a "$template" "$dir/data"
"$BIN/postgres" -D "$dir/data" -k "$dir" -c listen_addresses= -c fsync=off -c shared_buffers=16MB \
    >> "$dir/log" 2>&1 &
server=$!
until "$BIN/pg_isready" -q -h "$dir"; do
    kill -0 "$server" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
    sleep 0.05
done
echo "$dir"
read -r _ || true
kill -QUIT "$server"
wait "$server" || true
"#;

struct Server {
    socket_folder: PathBuf,
    /// Held open for as long as the tests run.
    _watcher: Child,
}

/// The address of a fresh, empty database.
pub async fn fresh_database() -> Result<String> {
    static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let server = SERVER.get_or_init(|| start().map_err(|error| format!("{error:#}")));
    let server = server.as_ref().map_err(|message| anyhow::anyhow!(message.clone()))?;
    let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let admin = server.url("postgres");
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&admin).await?;
    let create = sqlx::AssertSqlSafe(format!("create database {name} template template0"));
    sqlx::query(create).execute(&mut connection).await?;
    Ok(server.url(&name))
}

impl Server {
    fn url(&self, database: &str) -> String {
        format!("postgres://tandem@localhost/{database}?host={}", self.socket_folder.display())
    }
}

fn start() -> Result<Server> {
    let mut watcher = shell()
        .env("BIN", binaries().context(MISSING)?)
        .args(["-c", WATCHER])
        .current_dir("/tmp")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = watcher.stdout.take().context("a pipe")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    if line.is_empty() {
        bail!("the private Postgres did not start; its log is above");
    }
    Ok(Server { socket_folder: line.trim_end().into(), _watcher: watcher })
}

/// Postgres refuses to run as root, so then it runs as nobody.
fn shell() -> Command {
    let root = std::fs::metadata("/proc/self")
        .is_ok_and(|facts| std::os::unix::fs::MetadataExt::uid(&facts) == 0);
    if !root {
        return Command::new("sh");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "sh"]);
    command
}

fn binaries() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push("/usr/local/pgsql/bin".into());
    let mut installed: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    installed.sort();
    folders.extend(installed.into_iter().rev());
    folders.into_iter().find(|folder| holds_all(folder))
}

fn holds_all(folder: &Path) -> bool {
    ["initdb", "postgres", "pg_isready"].iter().all(|name| folder.join(name).is_file())
}
