//! The pictures of a run: read by a thread beside the device, seen by the frozen tower one block per
//! unit, and what was seen kept for the next epoch as far as there is room.
//!
//! What the tower gives of a picture never changes in a run, so that keeping it only saves time.
//! The first that come stay: epochs meet all pictures in turn, and of those that were used last
//! the next epoch would meet none.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::TrainError;
use crate::backend::Backend;
use crate::domain::{Picture, StoredPicture};
use crate::model::{Model, PictureRun, SeenPicture, TrainBatch};

/// How long a unit waits for a picture that is being read: others want the device too.
const PATIENCE: Duration = Duration::from_millis(2);

type Digest = [u8; 32];
type Reading = Receiver<Result<Arc<Picture>, String>>;

/// What one run has seen.
pub struct Sight<B: Backend> {
    kept: HashMap<Digest, Arc<[f32]>>,
    /// Bytes that may still be kept.
    room_bytes: usize,
    /// Of the batch that is looked at now.
    seen: HashMap<Digest, Arc<[f32]>>,
    reading: Option<Reading>,
    run: Option<(Digest, PictureRun<B>)>,
}

impl<B: Backend> Default for Sight<B> {
    fn default() -> Self {
        let (kept, seen) = (HashMap::new(), HashMap::new());
        Self { kept, room_bytes: 0, seen, reading: None, run: None }
    }
}

impl<B: Backend> Sight<B> {
    /// Keeps so many bytes of what is seen.
    pub fn keep(&mut self, bytes: usize) {
        self.room_bytes = bytes;
    }

    /// One unit of looking at the pictures of `batch`; what they look like when all are seen.
    ///
    /// # Errors
    /// [`TrainError::Picture`] if one cannot be read any more.
    pub fn see(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        batch: &TrainBatch,
    ) -> Result<Option<Vec<SeenPicture>>, TrainError> {
        if self.run.is_none() {
            let unseen = self.unseen(batch);
            if unseen.is_empty() {
                return Ok(Some(self.placed(batch)));
            }
            let Some(picture) = self.read(unseen)? else { return Ok(None) };
            let run = model.see(b, &picture).ok_or_else(|| {
                unreadable("it has not the size that the base model reads".to_owned())
            })?;
            self.run = Some((picture.digest, run));
        }
        if let Some((digest, mut run)) = self.run.take() {
            match run.advance(b, model) {
                None => self.run = Some((digest, run)),
                Some(features) => {
                    run.release(b);
                    self.remember(digest, features.into());
                }
            }
        }
        Ok(None)
    }

    /// The same for the batch that comes next, if one does: true once `seen` is what its pictures
    /// look like.
    ///
    /// # Errors
    /// As [`Sight::see`].
    pub fn prepare(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        next: Option<&TrainBatch>,
        seen: &mut Vec<SeenPicture>,
    ) -> Result<bool, TrainError> {
        let Some(batch) = next.filter(|batch| batch.pictures.len() > seen.len()) else {
            return Ok(true);
        };
        let found = self.see(b, model, batch)?;
        Ok(found.map(|found| *seen = found).is_some())
    }

    /// Gives device memory back.
    pub fn release(self, b: &mut B) {
        self.run.into_iter().for_each(|(_, run)| run.release(b));
    }

    /// The pictures whose features are not at hand, each once.
    fn unseen(&self, batch: &TrainBatch) -> Vec<Arc<dyn StoredPicture>> {
        let mut met = HashSet::new();
        let pictures = batch.pictures.iter().map(|(_, picture)| picture);
        let unseen = pictures.filter(|picture| {
            let digest = picture.digest();
            self.features(&digest).is_none() && met.insert(digest)
        });
        unseen.cloned().collect()
    }

    fn features(&self, digest: &Digest) -> Option<&Arc<[f32]>> {
        self.kept.get(digest).or_else(|| self.seen.get(digest))
    }

    /// The next picture, if it is there already; the first call sets somebody to read them all.
    fn read(
        &mut self,
        unseen: Vec<Arc<dyn StoredPicture>>,
    ) -> Result<Option<Arc<Picture>>, TrainError> {
        let reading = match &mut self.reading {
            Some(reading) => reading,
            none => none.insert(begin(unseen)?),
        };
        match reading.recv_timeout(PATIENCE) {
            Ok(picture) => picture.map(Some).map_err(unreadable),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(unreadable("whoever read it is gone".to_owned()))
            }
        }
    }

    fn remember(&mut self, digest: Digest, features: Arc<[f32]>) {
        let bytes = size_of_val(&*features);
        if let Some(left) = self.room_bytes.checked_sub(bytes) {
            self.room_bytes = left;
            self.kept.insert(digest, features);
        } else {
            self.seen.insert(digest, features);
        }
    }

    fn placed(&mut self, batch: &TrainBatch) -> Vec<SeenPicture> {
        let placed = batch.pictures.iter().map(|(rows, picture)| {
            let features = self.features(&picture.digest()).expect("every picture was seen");
            SeenPicture { row: rows.start, features: Arc::clone(features) }
        });
        let placed = placed.collect();
        (self.reading, self.seen) = (None, HashMap::new());
        placed
    }
}

/// Reads `pictures` on a thread that is never more than one ahead, and ends with its listener.
fn begin(pictures: Vec<Arc<dyn StoredPicture>>) -> Result<Reading, TrainError> {
    let (sender, reading) = sync_channel(1);
    let read = move || {
        for picture in pictures {
            if sender.send(picture.read()).is_err() {
                break;
            }
        }
    };
    let spawned = std::thread::Builder::new().name("pictures".to_owned()).spawn(read);
    spawned.map(|_| reading).map_err(|error| unreadable(error.to_string()))
}

fn unreadable(reason: String) -> TrainError {
    TrainError::Picture { reason }
}
