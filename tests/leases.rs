//! One holder at a time, and nothing written by anybody else: the queue's promises.

use std::time::Duration;

use serde_json::json;
use tandem::domain::{CheckpointId, JobId, JobStatus};
use tandem::store::{
    AdapterSource, ClaimedJob, IfTaken, JobError, Lease, NewAdapter, NewCheckpoint, NewEvent, Page,
    Progress, Renewed, Stage, Store, StoreError, StoreResult, Success,
};

use crate::support::database::{BASE, TENANT, TestResult, TestStore, a_file, a_job, an_adapter};

const LEASE: Duration = Duration::from_secs(60);

async fn claim(store: &Store, owner: &str, lease: Duration) -> StoreResult<Option<ClaimedJob>> {
    store.claim_job(owner, lease, Stage::Train, &[BASE]).await
}

async fn status(store: &Store, job: &JobId) -> StoreResult<JobStatus> {
    Ok(store.job(TENANT, job).await?.status)
}

fn success(lease: &Lease, name: &str) -> Success {
    let adapter = NewAdapter {
        source: AdapterSource::Job,
        job: Some(lease.job.clone()),
        ..an_adapter(name, "final")
    };
    let events = vec![NewEvent::info("The job has successfully completed")];
    let result_file = a_file("fine-tune-results");
    Success { adapter, result_file, step: 10, trained_tokens: 99, served_check: None, events }
}

fn checkpoint(lease: &Lease, step: i64) -> NewCheckpoint {
    let name = format!("ft:demo:::{}:ckpt-step-{step}", lease.job);
    NewCheckpoint {
        id: CheckpointId::generate(),
        step,
        state: format!("checkpoints/{}/{step}-{}", lease.job, lease.epoch),
        state_sha256: "5".repeat(64),
        metrics: json!({ "step": step }),
        adapter: NewAdapter {
            source: AdapterSource::Job,
            job: Some(lease.job.clone()),
            step: Some(step),
            ..an_adapter(&name, &format!("{step}-{}", lease.epoch))
        },
    }
}

fn is_lost<T>(result: StoreResult<T>) -> bool {
    matches!(result, Err(StoreError::LeaseLost { .. }))
}

#[tokio::test]
async fn an_expired_lease_passes_the_job_on_and_fences_the_first_holder_off() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        let first = claim(&store, "a", Duration::ZERO).await?.expect("a queued job").lease;
        let second = claim(&store, "b", LEASE).await?.expect("an expired lease").lease;
        assert_eq!((&second.job, second.epoch), (&job, first.epoch + 1));
        let progress = Progress { step: 3, ..Progress::default() };
        assert!(is_lost(store.renew_lease(&first, LEASE).await));
        assert!(is_lost(store.record_progress(&first, &progress).await));
        assert!(is_lost(store.record_checkpoint(&first, &checkpoint(&first, 3), &[]).await));
        assert!(is_lost(store.succeed(&first, &success(&first, "ft:a")).await));
        assert!(is_lost(store.release(&first, &[]).await));
        assert_eq!(store.adapter("ft:a").await?, None);
        store.succeed(&second, &success(&second, "ft:b")).await?;
        let job = store.job(TENANT, &job).await?;
        assert_eq!(job.status, JobStatus::Succeeded);
        assert_eq!(job.fine_tuned_model.as_deref(), Some("ft:b"));
        assert!(store.adapter("ft:b").await?.is_some());
        assert!(is_lost(store.succeed(&second, &success(&second, "ft:c")).await));
    }
    Ok(())
}

#[tokio::test]
async fn the_same_worker_claiming_again_is_another_holder() -> TestResult {
    for store in TestStore::on_each_database().await? {
        store.queued_job().await?;
        let first = claim(&store, "a", Duration::ZERO).await?.expect("a queued job").lease;
        let second = claim(&store, "a", LEASE).await?.expect("an expired lease").lease;
        assert!(is_lost(store.renew_lease(&first, LEASE).await));
        assert_eq!(store.renew_lease(&second, LEASE).await?, Renewed::GoOn);
    }
    Ok(())
}

#[tokio::test]
async fn every_job_is_claimed_once_however_many_try() -> TestResult {
    for store in TestStore::on_each_database().await? {
        for _ in 0..12 {
            store.queued_job().await?;
        }
        let workers = (0..6).map(|worker| {
            let store = (*store).clone();
            tokio::spawn(async move {
                let mut held = Vec::new();
                while let Some(claimed) = claim(&store, &format!("w{worker}"), LEASE).await? {
                    held.push((claimed.lease.job, claimed.lease.epoch));
                }
                Ok::<_, StoreError>(held)
            })
        });
        let mut held = Vec::new();
        for worker in futures::future::join_all(workers).await {
            held.extend(worker??);
        }
        held.sort();
        held.dedup_by(|a, b| a.0 == b.0);
        assert_eq!(held.len(), 12);
    }
    Ok(())
}

#[tokio::test]
async fn a_lease_that_nobody_took_can_be_renewed_late() -> TestResult {
    for store in TestStore::on_each_database().await? {
        store.queued_job().await?;
        let lease = claim(&store, "a", Duration::ZERO).await?.expect("a queued job").lease;
        assert_eq!(store.renew_lease(&lease, LEASE).await?, Renewed::GoOn);
        assert!(claim(&store, "b", LEASE).await?.is_none());
    }
    Ok(())
}

#[tokio::test]
async fn urgent_jobs_go_first_then_older_ones() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let mut ids = Vec::new();
        for priority in [0, 5, 0] {
            let new = tandem::store::NewJob { priority, ..a_job() };
            ids.push(store.create_job(&new, None).await?.into_inner().id);
        }
        let mut order = Vec::new();
        while let Some(claimed) = store.claim_job("v", LEASE, Stage::Validate, &[BASE]).await? {
            order.push(claimed.lease.job);
        }
        assert_eq!(order, [ids[1].clone(), ids[0].clone(), ids[2].clone()]);
    }
    Ok(())
}

#[tokio::test]
async fn a_server_claims_only_jobs_on_bases_it_holds() -> TestResult {
    for store in TestStore::on_each_database().await? {
        store.queued_job().await?;
        assert!(store.claim_job("a", LEASE, Stage::Train, &["other"]).await?.is_none());
        assert!(store.claim_job("a", LEASE, Stage::Train, &[]).await?.is_none());
        assert!(store.claim_job("a", LEASE, Stage::Train, &["other", BASE]).await?.is_some());
    }
    Ok(())
}

#[tokio::test]
async fn events_are_numbered_without_gaps_through_a_whole_life() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        let lease = claim(&store, "a", LEASE).await?.expect("a queued job").lease;
        store.start_training(&lease, &json!({ "seed": 7 }), &[NewEvent::info("started")]).await?;
        for step in 1..=5 {
            let events = (0..step).map(|_| NewEvent::metrics("step", json!({ "step": step })));
            let progress = Progress { step, events: events.collect(), ..Progress::default() };
            store.record_progress(&lease, &progress).await?;
        }
        store.record_checkpoint(&lease, &checkpoint(&lease, 5), &[NewEvent::info("c")]).await?;
        store.succeed(&lease, &success(&lease, "ft:demo")).await?;
        let events = store.events_after(&job, 0, 100).await?;
        let numbers: Vec<i64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, (1..=1 + 1 + 15 + 1 + 1).collect::<Vec<_>>());
        assert_eq!(store.job(TENANT, &job).await?.event_seq, 19);
    }
    Ok(())
}

#[tokio::test]
async fn a_cancelled_job_is_final_and_its_worker_is_told() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        let lease = claim(&store, "a", LEASE).await?.expect("a queued job").lease;
        let cancelled = store.cancel_job(TENANT, &job).await?;
        assert_eq!(cancelled.status, JobStatus::Cancelled);
        assert!(cancelled.finished_at.is_some());
        let told = store.renew_lease(&lease, LEASE).await;
        let cancelled = JobStatus::Cancelled;
        assert!(matches!(told, Err(StoreError::Conflict { status, .. }) if status == cancelled));
        assert!(is_lost(store.succeed(&lease, &success(&lease, "ft:late")).await));
        assert_eq!(store.adapter("ft:late").await?, None);
        let again = store.cancel_job(TENANT, &job).await;
        assert!(matches!(again, Err(StoreError::Conflict { .. })));
        assert!(claim(&store, "b", LEASE).await?.is_none());
    }
    Ok(())
}

#[tokio::test]
async fn a_paused_job_waits_until_it_is_resumed() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        let lease = claim(&store, "a", LEASE).await?.expect("a queued job").lease;
        assert_eq!(store.pause_job(TENANT, &job).await?.status, JobStatus::Paused);
        assert_eq!(store.renew_lease(&lease, LEASE).await?, Renewed::Pause);
        store.record_checkpoint(&lease, &checkpoint(&lease, 4), &[]).await?;
        store.release(&lease, &[]).await?;
        assert_eq!(status(&store, &job).await?, JobStatus::Paused);
        assert!(claim(&store, "b", LEASE).await?.is_none());
        assert_eq!(store.resume_job(TENANT, &job).await?.status, JobStatus::Queued);
        let claimed = claim(&store, "b", LEASE).await?.expect("a resumed job");
        assert_eq!((claimed.job.step, claimed.job.attempt), (4, 1));
        let again = store.resume_job(TENANT, &job).await;
        assert!(matches!(again, Err(StoreError::Conflict { .. })));
    }
    Ok(())
}

#[tokio::test]
async fn a_job_resumed_too_soon_waits_for_its_worker_to_let_go() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        let lease = claim(&store, "a", LEASE).await?.expect("a queued job").lease;
        store.pause_job(TENANT, &job).await?;
        store.resume_job(TENANT, &job).await?;
        assert!(claim(&store, "b", LEASE).await?.is_none());
        assert_eq!(store.renew_lease(&lease, LEASE).await?, Renewed::Pause);
        store.release(&lease, &[]).await?;
        assert!(claim(&store, "b", LEASE).await?.is_some());
    }
    Ok(())
}

#[tokio::test]
async fn a_job_paused_before_its_files_were_read_is_validated_after_all() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.create_job(&a_job(), None).await?.into_inner().id;
        let held = store.claim_job("v", LEASE, Stage::Validate, &[BASE]).await?.expect("a job");
        store.pause_job(TENANT, &job).await?;
        assert!(is_lost(store.finish_validation(&held.lease, &[]).await));
        assert_eq!(store.resume_job(TENANT, &job).await?.status, JobStatus::ValidatingFiles);
        assert!(store.claim_job("v", LEASE, Stage::Validate, &[BASE]).await?.is_some());
    }
    Ok(())
}

#[tokio::test]
async fn a_job_that_kills_its_worker_again_and_again_is_given_up() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        for _ in 0..3 {
            assert!(claim(&store, "a", Duration::ZERO).await?.is_some());
        }
        assert!(claim(&store, "a", Duration::ZERO).await?.is_none());
        let job = store.job(TENANT, &job).await?;
        assert_eq!(job.status, JobStatus::Failed);
        assert_eq!(job.error.expect("a reason").code, "job_crashed_worker");
        let last = store.events(&job.id, &Page::newest(1)).await?.rows.remove(0);
        assert_eq!(last.seq, job.event_seq);
    }
    Ok(())
}

#[tokio::test]
async fn a_checkpoint_ends_the_streak_of_crashes() -> TestResult {
    for store in TestStore::on_each_database().await? {
        store.queued_job().await?;
        for step in 1..=24 {
            let lease = claim(&store, "a", Duration::ZERO).await?.expect("still alive").lease;
            store.record_checkpoint(&lease, &checkpoint(&lease, step), &[]).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_stopping_server_gives_its_job_back_uncharged() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        for _ in 0..9 {
            let lease = claim(&store, "a", LEASE).await?.expect("a queued job").lease;
            store.release(&lease, &[]).await?;
        }
        assert_eq!(status(&store, &job).await?, JobStatus::Queued);
        assert_eq!(claim(&store, "a", LEASE).await?.expect("a job").job.attempt, 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_passing_trouble_is_tried_again_until_attempts_run_out() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        let trouble =
            JobError { code: "storage_error".into(), message: "disk full".into(), param: None };
        for _ in 0..5 {
            let lease = claim(&store, "a", LEASE).await?.expect("a queued job").lease;
            store.postpone(&lease, Duration::ZERO, &trouble, &[]).await?;
        }
        let job = store.job(TENANT, &job).await?;
        assert_eq!((job.status, job.error), (JobStatus::Failed, Some(trouble)));
    }
    Ok(())
}

#[tokio::test]
async fn a_postponed_job_is_not_claimed_before_its_time() -> TestResult {
    for store in TestStore::on_each_database().await? {
        store.queued_job().await?;
        let lease = claim(&store, "a", LEASE).await?.expect("a queued job").lease;
        let trouble = JobError { code: "x".into(), message: "y".into(), param: None };
        store.postpone(&lease, LEASE, &trouble, &[]).await?;
        assert!(claim(&store, "a", LEASE).await?.is_none());
    }
    Ok(())
}

#[tokio::test]
async fn a_restarted_server_takes_its_own_jobs_back_at_once() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        claim(&store, "this", LEASE).await?.expect("a queued job");
        assert_eq!(store.expire_leases_of("another").await?, 0);
        assert!(claim(&store, "this", LEASE).await?.is_none());
        assert_eq!(store.expire_leases_of("this").await?, 1);
        let again = claim(&store, "this", LEASE).await?.expect("its own job");
        assert_eq!((again.lease.job, again.job.crash_streak), (job, 1));
    }
    Ok(())
}

#[tokio::test]
async fn checkpoints_are_listed_resumed_from_and_forgotten() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        let lease = claim(&store, "a", LEASE).await?.expect("a queued job").lease;
        for step in [2, 4] {
            let told = [NewEvent::info(format!("Checkpoint created at step {step}"))];
            store.record_checkpoint(&lease, &checkpoint(&lease, step), &told).await?;
        }
        let listed = store.checkpoints(&job, &Page::newest(1)).await?;
        assert!(listed.has_more);
        assert_eq!(listed.rows[0].step, 4);
        assert!(store.adapter(&listed.rows[0].adapter_name).await?.is_some());
        let resumable = store.resumable_checkpoints(&job).await?;
        assert_eq!(resumable.iter().map(|c| c.step).collect::<Vec<_>>(), [4, 2]);
        assert_eq!(store.live_states().await?.len(), 2);
        store.forget_state(&lease, &resumable[1].id).await?;
        assert_eq!(store.resumable_checkpoints(&job).await?.len(), 1);
        store.succeed(&lease, &success(&lease, "ft:demo")).await?;
        assert!(store.live_states().await?.is_empty());
        assert_eq!(store.checkpoints(&job, &Page::newest(10)).await?.rows.len(), 2);
    }
    Ok(())
}

#[tokio::test]
async fn a_step_done_again_by_the_next_holder_replaces_its_checkpoint() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        let first = claim(&store, "a", Duration::ZERO).await?.expect("a queued job").lease;
        store.record_checkpoint(&first, &checkpoint(&first, 2), &[]).await?;
        let second = claim(&store, "b", LEASE).await?.expect("an expired lease").lease;
        let redone = checkpoint(&second, 2);
        store.record_checkpoint(&second, &redone, &[]).await?;
        let listed = store.checkpoints(&job, &Page::newest(10)).await?.rows;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].state.as_ref(), Some(&redone.state));
        assert_eq!(listed[0].adapter, redone.adapter.id);
    }
    Ok(())
}

#[tokio::test]
async fn a_success_that_cannot_have_its_name_leaves_nothing_behind() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.queued_job().await?;
        let lease = claim(&store, "a", LEASE).await?.expect("a queued job").lease;
        store.insert_adapter(&an_adapter("ft:taken", "other"), IfTaken::Refuse).await?;
        let refused = store.succeed(&lease, &success(&lease, "ft:taken")).await;
        assert!(matches!(refused, Err(StoreError::NameTaken(_))));
        assert_eq!(status(&store, &job).await?, JobStatus::Running);
        assert_eq!(store.events_after(&job, 0, 10).await?.len(), 1);
        assert!(store.files(TENANT, None, &Page::newest(9)).await?.rows.is_empty());
    }
    Ok(())
}
