//! What the store promises, on each database.

use serde_json::json;
use tandem::domain::{FileId, JobId, JobStatus};
use tandem::store::{
    Created, File, IdempotencyKey, IfTaken, MetadataFilter, NewEvent, Order, Page, Store,
    StoreError,
};

use crate::support::database::{
    BASE, TENANT, TestResult, TestStore, a_file, a_job, a_job_with, an_adapter,
};

fn key(body: &str) -> IdempotencyKey {
    IdempotencyKey {
        tenant: TENANT.into(),
        route: "POST /v1/fine_tuning/jobs".into(),
        key: "once".into(),
        body_sha256: body.into(),
    }
}

async fn every_page(store: &Store, order: Order) -> Result<Vec<FileId>, StoreError> {
    let mut seen = Vec::new();
    loop {
        let after = seen.last().map(|id: &FileId| id.to_string());
        let page = store.files(TENANT, Some("fine-tune"), &Page { after, limit: 2, order }).await?;
        seen.extend(page.rows.into_iter().map(|file| file.id));
        if !page.has_more {
            return Ok(seen);
        }
    }
}

#[tokio::test]
async fn a_file_is_found_again_by_its_tenant_only() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let file = store.insert_file(&a_file("fine-tune"), None).await?.into_inner();
        assert_eq!(store.file(TENANT, &file.id).await?, file);
        let stranger = store.file("somebody else", &file.id).await;
        assert!(matches!(stranger, Err(StoreError::NotFound { .. })));
        assert!(store.content_in_use(&file.sha256).await?);
        store.delete_file(TENANT, &file.id).await?;
        assert!(!store.content_in_use(&file.sha256).await?);
        assert!(matches!(store.file(TENANT, &file.id).await, Err(StoreError::NotFound { .. })));
    }
    Ok(())
}

#[tokio::test]
async fn an_expired_file_is_gone() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let mut short_lived = a_file("fine-tune");
        short_lived.expires_after = Some(std::time::Duration::ZERO);
        let file: File = store.insert_file(&short_lived, None).await?.into_inner();
        assert!(matches!(store.file(TENANT, &file.id).await, Err(StoreError::NotFound { .. })));
        assert!(store.files(TENANT, None, &Page::newest(10)).await?.rows.is_empty());
        assert_eq!(store.delete_expired_files().await?.len(), 1);
    }
    Ok(())
}

#[tokio::test]
async fn pages_show_every_file_once_in_either_order() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let mut written = Vec::new();
        for _ in 0..5 {
            written.push(store.insert_file(&a_file("fine-tune"), None).await?.into_inner().id);
        }
        store.insert_file(&a_file("batch"), None).await?;
        assert_eq!(every_page(&store, Order::Ascending).await?, written);
        written.reverse();
        assert_eq!(every_page(&store, Order::Descending).await?, written);
    }
    Ok(())
}

#[tokio::test]
async fn a_cursor_nobody_knows_is_an_error_not_an_empty_page() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let page = Page { after: Some("file-unknown".into()), ..Page::newest(2) };
        let listed = store.files(TENANT, None, &page).await;
        assert!(matches!(listed, Err(StoreError::UnknownCursor(_))));
    }
    Ok(())
}

#[tokio::test]
async fn a_new_job_waits_for_validation_and_has_one_event() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.create_job(&a_job(), None).await?.into_inner();
        assert_eq!(job.status, JobStatus::ValidatingFiles);
        assert_eq!(job.spec, json!({ "model": BASE, "seed": 7 }));
        let events = store.events_after(&job.id, 0, 10).await?;
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].message, format!("Created fine-tuning job: {}", job.id));
        assert_eq!(store.job(TENANT, &job.id).await?, job);
    }
    Ok(())
}

#[tokio::test]
async fn jobs_are_listed_by_their_metadata() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let plain = store.create_job(&a_job(), None).await?.into_inner().id;
        let red = store.create_job(&a_job_with(&[("colour", "red")]), None).await?.into_inner();
        let both = [("colour", "red"), ("team", "a'b")];
        let both = store.create_job(&a_job_with(&both), None).await?.into_inner().id;
        let list = async |filter| {
            let page = store.jobs(TENANT, &filter, &Page::newest(10)).await?;
            Ok::<Vec<JobId>, StoreError>(page.rows.into_iter().map(|job| job.id).collect())
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(list(MetadataFilter::All).await?.len(), 3);
        assert_eq!(list(MetadataFilter::Without).await?, [plain]);
        let reds = list(MetadataFilter::Pairs(vec![pair("colour", "red")])).await?;
        assert_eq!(reds, [both.clone(), red.id.clone()]);
        let pairs = vec![pair("colour", "red"), pair("team", "a'b")];
        assert_eq!(list(MetadataFilter::Pairs(pairs)).await?, [both]);
        assert_eq!(red.metadata.expect("metadata")["colour"], "red");
    }
    Ok(())
}

#[tokio::test]
async fn one_idempotency_key_makes_one_job_however_many_ask_at_once() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let asking = (0..8).map(|_| {
            let store = (*store).clone();
            tokio::spawn(async move { store.create_job(&a_job(), Some(&key("body"))).await })
        });
        let mut made = 0;
        let mut ids = Vec::new();
        for answer in futures::future::join_all(asking).await {
            let created = answer??;
            made += usize::from(!created.is_replay());
            ids.push(created.into_inner().id);
        }
        ids.dedup();
        assert_eq!((made, ids.len()), (1, 1));
        let all = store.jobs(TENANT, &MetadataFilter::All, &Page::newest(10)).await?;
        assert_eq!(all.rows.len(), 1);
    }
    Ok(())
}

#[tokio::test]
async fn an_idempotency_key_with_another_body_is_refused() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let first = store.create_job(&a_job(), Some(&key("body"))).await?;
        assert!(matches!(first, Created::New(_)));
        let second = store.create_job(&a_job(), Some(&key("another"))).await;
        assert!(matches!(second, Err(StoreError::IdempotencyMismatch(_))));
    }
    Ok(())
}

#[tokio::test]
async fn a_name_belongs_to_one_live_adapter_and_counts_generations() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let first = store.insert_adapter(&an_adapter("pirate", "a"), IfTaken::Refuse).await?;
        let taken = store.insert_adapter(&an_adapter("pirate", "b"), IfTaken::Refuse).await;
        assert!(matches!(taken, Err(StoreError::NameTaken(_))));
        let same = store.insert_adapter(&an_adapter("pirate", "a"), IfTaken::Refuse).await?;
        assert_eq!(same, first);
        let second = store.insert_adapter(&an_adapter("pirate", "b"), IfTaken::Replace).await?;
        assert_eq!((first.generation, second.generation), (1, 2));
        assert_eq!(store.adapter("pirate").await?, Some(second.clone()));
        assert_eq!(store.adapter_by_id(&first.id).await?, first);
        assert!(!store.location_in_use(&first.location).await?);
        assert_eq!(store.delete_adapter("pirate").await?, second);
        assert_eq!(store.adapter("pirate").await?, None);
        let again = store.delete_adapter("pirate").await;
        assert!(matches!(again, Err(StoreError::NotFound { .. })));
        let third = store.insert_adapter(&an_adapter("pirate", "a"), IfTaken::Refuse).await?;
        assert_eq!(third.generation, 3);
        assert_eq!(store.adapters(&Page::newest(10)).await?.rows, [third]);
    }
    Ok(())
}

#[tokio::test]
async fn events_are_paged_by_their_ids() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.create_job(&a_job(), None).await?.into_inner().id;
        store.pause_job(TENANT, &job).await?;
        store.resume_job(TENANT, &job).await?;
        let newest = store.events(&job, &Page::newest(2)).await?;
        assert_eq!(newest.rows.iter().map(|event| event.seq).collect::<Vec<_>>(), [3, 2]);
        assert!(newest.has_more);
        let after = Some(newest.rows[1].id.to_string());
        let rest = store.events(&job, &Page { after, ..Page::newest(2) }).await?;
        assert_eq!(rest.rows.iter().map(|event| event.seq).collect::<Vec<_>>(), [1]);
        assert!(!rest.has_more);
    }
    Ok(())
}

#[tokio::test]
async fn a_change_wakes_those_who_wait_for_it() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let other = if store.url.starts_with("postgres") {
            Store::open(&store.url).await?
        } else {
            (*store).clone()
        };
        let mut changes = other.changes();
        changes.mark_unchanged();
        store.create_job(&a_job(), None).await?;
        changes.changed().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_was_written_is_there_after_opening_again() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let job = store.create_job(&a_job(), None).await?.into_inner();
        store.close().await;
        let again = Store::open(&store.url).await?;
        assert_eq!(again.job(TENANT, &job.id).await?, job);
    }
    Ok(())
}

#[tokio::test]
async fn a_nul_in_a_name_is_refused_on_both_databases_alike() -> TestResult {
    for store in TestStore::on_each_database().await? {
        let mut file = a_file("fine-tune");
        file.filename = "a\0b".into();
        assert!(matches!(store.insert_file(&file, None).await, Err(StoreError::Nul(_))));
        let job = store.queued_job().await?;
        let claimed = store
            .claim_job("w", std::time::Duration::from_secs(9), tandem::store::Stage::Train, &[BASE])
            .await?
            .expect("a queued job");
        store.release(&claimed.lease, &[NewEvent::info("a\0b")]).await?;
        let last = store.events(&job, &Page::newest(1)).await?.rows.remove(0);
        assert_eq!(last.message, "ab");
    }
    Ok(())
}

#[tokio::test]
async fn an_address_of_another_kind_is_refused_without_its_password() {
    let error = Store::open("mysql://me:secret@host/db").await.expect_err("no such database");
    let sentence = error.to_string();
    assert!(sentence.contains("mysql://me@host/db"), "{sentence}");
    assert!(!sentence.contains("secret"));
}
