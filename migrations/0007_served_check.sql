-- How far the finished adapter, as it is served, gave the logits it gave in training (JSON); null
-- until a job has succeeded.
alter table jobs add column served_check text;
