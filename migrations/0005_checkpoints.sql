-- A checkpoint exists when this row does: files without a row are rubbish, whatever they contain.
-- Its state (weights, moments, cursor) is kept only for the newest few; its adapter stays servable.
create table checkpoints (
    id text primary key,
    job_id text not null references jobs (id),
    step bigint not null,
    lease_epoch bigint not null,
    adapter_id text not null references adapters (id),
    -- The state's folder under the artifact root; null once it was cleared away or found corrupt.
    state text,
    state_sha256 text not null,
    metrics text not null,
    created_at bigint not null,
    unique (job_id, step)
);
