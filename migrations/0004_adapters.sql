-- An adapter is immutable: a new version of a name is a new row, one generation higher. Rows stay
-- after deletion, because a running request may still use them and a job may still name them.
create table adapters (
    id text primary key,
    name text not null,
    generation bigint not null,
    base text not null,
    -- Null where the adapter was made elsewhere and says nothing of its base.
    base_fingerprint text,
    -- A folder under the artifact root, or an absolute path registered by the operator.
    location text not null,
    -- Over the folder's manifest: names, sizes and hashes of its files.
    sha256 text not null,
    r bigint not null,
    size_bytes bigint not null,
    source text not null,
    job_id text references jobs (id),
    -- Of a checkpoint's adapter, the optimiser step; null for the job's result.
    step bigint,
    created_at bigint not null,
    deleted_at bigint,
    constraint adapters_source check (source in ('job', 'upload', 'folder')),
    unique (name, generation)
);

create unique index adapters_live on adapters (name) where deleted_at is null;
create unique index adapters_one_result on adapters (job_id)
    where job_id is not null and step is null;
create index adapters_by_age on adapters (created_at, id);
