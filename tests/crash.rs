//! What is left after a crash, a broken upload or a damaged disk.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use tandem::artifacts::{ArtifactError, Artifacts};

use crate::support::database::TestResult;

fn open(folder: &Path) -> Result<Artifacts, ArtifactError> {
    Artifacts::open(&folder.display().to_string())
}

fn files_under(folder: &Path) -> usize {
    fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .fold(0, |count, path| count + if path.is_dir() { files_under(&path) } else { 1 })
}

fn adapter() -> Vec<(String, Vec<u8>)> {
    vec![
        ("adapter_config.json".into(), b"{}".to_vec()),
        ("adapter_model.safetensors".into(), vec![7; 1000]),
    ]
}

#[tokio::test]
async fn what_was_half_written_is_cleared_away_at_the_next_start() -> TestResult {
    let folder = tempfile::tempdir()?;
    let first = open(folder.path())?;
    let kept = first.put_adapter(adapter()).await?;
    drop(first);
    fs::write(folder.path().join("tmp/upload"), b"half")?;
    fs::create_dir(folder.path().join("tmp/adapter"))?;
    fs::write(folder.path().join("tmp/adapter/manifest.json"), b"half")?;
    let second = open(folder.path())?;
    assert_eq!(files_under(&folder.path().join("tmp")), 0);
    second.verified_folder(&kept.location, &kept.sha256).await?;
    Ok(())
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() -> TestResult {
    let folder = tempfile::tempdir()?;
    let artifacts = open(folder.path())?;
    let before = files_under(folder.path());
    let broken =
        futures::stream::iter([Ok(Bytes::from_static(b"half")), Err("the client went away")]);
    let result = artifacts.put_stream(broken, 100).await;
    assert!(matches!(result, Err(ArtifactError::Upload(_))));
    let large = futures::stream::iter([Ok::<_, String>(Bytes::from(vec![0; 101]))]);
    let result = artifacts.put_stream(large, 100).await;
    assert!(matches!(result, Err(ArtifactError::TooLarge { limit: 100 })));
    let endless = artifacts.put_stream(futures::stream::pending::<Result<Bytes, String>>(), 100);
    let gone = tokio::time::timeout(std::time::Duration::from_millis(20), endless).await;
    assert!(gone.is_err());
    assert_eq!(files_under(folder.path()), before);
    Ok(())
}

#[tokio::test]
async fn the_same_bytes_are_kept_once_under_their_hash() -> TestResult {
    let folder = tempfile::tempdir()?;
    let artifacts = open(folder.path())?;
    let first = artifacts.put_bytes("ahoy").await?;
    let pieces = ["a", "ho", "y"].map(|piece| Ok::<_, String>(Bytes::from(piece)));
    let second = artifacts.put_stream(futures::stream::iter(pieces), 4).await?;
    assert_eq!((&first.sha256, first.bytes), (&second.sha256, second.bytes));
    assert_eq!(fs::read(artifacts.path(&first.sha256)?)?, b"ahoy");
    assert_eq!(files_under(&folder.path().join("blobs")), 1);
    Ok(())
}

#[tokio::test]
async fn a_content_about_to_be_named_is_not_deleted() -> TestResult {
    let folder = tempfile::tempdir()?;
    let artifacts = open(folder.path())?;
    let blob = artifacts.put_bytes("ahoy").await?;
    let sha256 = blob.sha256.clone();
    assert!(!artifacts.delete(&sha256).await?);
    drop(blob);
    assert!(artifacts.delete(&sha256).await?);
    assert!(artifacts.read(&sha256).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_flipped_bit_a_missing_file_and_a_changed_manifest_are_noticed() -> TestResult {
    let folder = tempfile::tempdir()?;
    let artifacts = open(folder.path())?;
    let kept = artifacts.put_checkpoint("ftjob-1", 4, 1, adapter()).await?;
    let path = artifacts.verified_folder(&kept.location, &kept.sha256).await?;
    let weights = path.join("adapter_model.safetensors");
    let mut bytes = fs::read(&weights)?;
    bytes[500] ^= 1;
    fs::write(&weights, &bytes)?;
    let damaged = |result| matches!(result, Err(ArtifactError::Corrupt { .. }));
    assert!(damaged(artifacts.verified_folder(&kept.location, &kept.sha256).await));
    fs::remove_file(&weights)?;
    assert!(damaged(artifacts.verified_folder(&kept.location, &kept.sha256).await));
    let again = artifacts.put_checkpoint("ftjob-1", 4, 1, adapter()).await?;
    assert_eq!(again, kept);
    artifacts.verified_folder(&kept.location, &kept.sha256).await?;
    fs::write(path.join("manifest.json"), b"{\"files\":[]}")?;
    assert!(damaged(artifacts.verified_folder(&kept.location, &kept.sha256).await));
    artifacts.quarantine(&kept.location).await?;
    assert!(!path.exists());
    Ok(())
}

#[tokio::test]
async fn checkpoints_that_no_row_names_are_swept_away() -> TestResult {
    let folder = tempfile::tempdir()?;
    let artifacts = open(folder.path())?;
    let live = artifacts.put_checkpoint("ftjob-1", 4, 1, adapter()).await?;
    let stale = artifacts.put_checkpoint("ftjob-1", 2, 1, adapter()).await?;
    let orphan = artifacts.put_checkpoint("ftjob-2", 2, 1, adapter()).await?;
    artifacts.sweep_checkpoints(vec![live.location.clone()]).await?;
    artifacts.verified_folder(&live.location, &live.sha256).await?;
    assert!(!artifacts.folder_path(&stale.location)?.exists());
    assert!(!artifacts.folder_path(&orphan.location)?.exists());
    Ok(())
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_refused() -> TestResult {
    let folder = tempfile::tempdir()?;
    let artifacts = open(folder.path())?;
    for location in ["../x", "/etc", "", "adapters/../../x"] {
        assert!(matches!(artifacts.folder_path(location), Err(ArtifactError::BadName(_))));
    }
    assert!(matches!(artifacts.path("../../etc/passwd"), Err(ArtifactError::BadName(_))));
    let climbing = vec![("../escape".to_owned(), Vec::new())];
    assert!(matches!(artifacts.put_adapter(climbing).await, Err(ArtifactError::BadName(_))));
    Ok(())
}

#[test]
fn one_server_per_folder_and_no_object_store_yet() -> TestResult {
    let folder = tempfile::tempdir()?;
    let held = open(folder.path())?;
    assert!(matches!(open(folder.path()), Err(ArtifactError::InUse(_))));
    drop(held);
    open(folder.path())?;
    let error = Artifacts::open("s3://bucket/prefix").expect_err("not built");
    assert!(error.to_string().contains("s3://"), "{error}");
    Ok(())
}
