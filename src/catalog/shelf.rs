//! Pictures of training data: they stay in the uploaded file, are decoded once to be checked, and
//! again whenever a run looks at them. Held that way a picture costs a run some bytes of memory,
//! however large it is.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::ServedBase;
use crate::domain::{Picture, PictureShelf, StoredPicture};
use crate::pictures::PictureReader;
use crate::text::dataset::{self, Seeing};

/// The pictures of one file, as one model reads them. The file is held open: it may be deleted
/// meanwhile.
#[derive(Clone, Debug)]
pub struct FileShelf {
    file: Arc<File>,
    reader: Arc<PictureReader>,
}

/// One of them.
#[derive(Debug)]
struct LinePicture {
    shelf: FileShelf,
    /// The bytes of its line.
    line: Range<u64>,
    /// Counted from 0 in its line.
    number: usize,
    digest: [u8; 32],
}

impl ServedBase {
    /// What takes the pictures of `file`; `None` if the model sees none.
    pub fn shelf(&self, file: File) -> Option<FileShelf> {
        let reader = Arc::clone(self.pictures.as_ref()?);
        Some(FileShelf { file: Arc::new(file), reader })
    }

    /// How training data shows pictures to this model.
    pub fn seeing<'a>(&self, shelf: Option<&'a FileShelf>) -> Option<Seeing<'a>> {
        let (vision, shelf) = self.info.vision.zip(shelf)?;
        Some(Seeing { vision, shelf })
    }
}

impl PictureShelf for FileShelf {
    fn take(
        &self,
        line: Range<u64>,
        number: usize,
        url: &str,
    ) -> Result<Arc<dyn StoredPicture>, String> {
        let Picture { digest, .. } =
            self.reader.read_url(url).map_err(|error| error.to_string())?;
        Ok(Arc::new(LinePicture { shelf: self.clone(), line, number, digest }))
    }
}

impl StoredPicture for LinePicture {
    fn digest(&self) -> [u8; 32] {
        self.digest
    }

    fn read(&self) -> Result<Arc<Picture>, String> {
        let FileShelf { file, reader } = &self.shelf;
        let mut line = vec![0; (self.line.end - self.line.start) as usize];
        file.read_exact_at(&mut line, self.line.start).map_err(|error| error.to_string())?;
        let url = dataset::picture_url(&line, self.number);
        let url = url.ok_or("its line has changed")?;
        let picture = reader.read_url(&url).map_err(|error| error.to_string())?;
        match picture.digest == self.digest {
            true => Ok(Arc::new(picture)),
            false => Err("it has changed".to_owned()),
        }
    }
}
