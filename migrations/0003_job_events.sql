-- What happened to a job, numbered from 1 without gaps: the number is the id of a server-sent
-- event, so a client that reconnects misses nothing and sees nothing twice.
create table job_events (
    job_id text not null references jobs (id),
    seq bigint not null,
    id text not null unique,
    created_at bigint not null,
    level text not null,
    type text not null,
    message text not null,
    data text,
    primary key (job_id, seq)
);
