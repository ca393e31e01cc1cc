-- A fine-tuning job is a row that several workers may want. One of them holds it under a lease;
-- each claim raises lease_epoch, and every later write names the epoch it believes in, so a worker
-- that slept through its lease changes nothing. spec is what the job was asked to do (JSON); the
-- other columns are what queue and API need to see.
create table jobs (
    id text primary key,
    tenant text not null,
    base text not null,
    base_fingerprint text not null,
    spec text not null,
    metadata text,
    training_file text not null,
    validation_file text,
    status text not null,
    priority bigint not null default 0,
    -- Not to be claimed before; moved forward when an attempt failed for a passing reason.
    run_at bigint not null,
    attempt bigint not null default 0,
    max_attempts bigint not null default 5,
    -- Attempts that ended without a word, since the last checkpoint.
    crash_streak bigint not null default 0,
    lease_owner text,
    lease_epoch bigint not null default 0,
    lease_until bigint,
    validated_at bigint,
    step bigint not null default 0,
    total_steps bigint,
    event_seq bigint not null default 0,
    trained_tokens bigint,
    fine_tuned_model text,
    result_file text,
    error_code text,
    error_message text,
    error_param text,
    created_at bigint not null,
    started_at bigint,
    estimated_finish bigint,
    finished_at bigint,
    constraint jobs_status check (status in (
        'validating_files', 'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')),
    constraint jobs_lease check ((lease_owner is null) = (lease_until is null)),
    constraint jobs_running check (status <> 'running' or lease_owner is not null),
    constraint jobs_final check (
        (status in ('succeeded', 'failed', 'cancelled')) = (finished_at is not null)),
    constraint jobs_final_unleased check (finished_at is null or lease_owner is null)
);

create index jobs_by_age on jobs (tenant, created_at, id);
create index jobs_ready on jobs (priority, created_at)
    where status in ('validating_files', 'queued', 'running');

-- The pairs of metadata once more, so that a list can be filtered by them.
create table job_metadata (
    job_id text not null references jobs (id),
    name text not null,
    value text not null,
    primary key (job_id, name)
);
