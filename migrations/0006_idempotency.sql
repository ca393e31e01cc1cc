-- A client that repeats a request after a lost answer gets the first one's resource again. The row
-- is written in the transaction that makes the resource, so neither exists without the other.
create table idempotency_keys (
    tenant text not null,
    route text not null,
    idempotency_key text not null,
    body_sha256 text not null,
    resource_id text not null,
    created_at bigint not null,
    expires_at bigint not null,
    primary key (tenant, route, idempotency_key)
);
