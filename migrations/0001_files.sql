-- Files are metadata here and bytes in the artifact folder, under their SHA-256; several rows may
-- share the bytes. All types are ones that Postgres and SQLite agree on; times are microseconds
-- since 1970 on the database's clock.
create table files (
    id text primary key,
    tenant text not null,
    purpose text not null,
    filename text not null,
    bytes bigint not null,
    sha256 text not null,
    status text not null,
    status_details text,
    created_at bigint not null,
    expires_at bigint
);

create index files_by_age on files (tenant, created_at, id);
create index files_by_content on files (sha256);
