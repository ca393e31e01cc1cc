//! The pictures of a line: their room among its tokens, and who has them.

use std::ops::Range;

use serde_json::{Map, Value};

use super::build::{MARK, parse_object};
use super::records::Findings;
use super::report::Problem;
use crate::domain::{Example, ExamplePicture, IGNORE_INDEX, PictureShelf, VisionInfo};
use crate::text::messages::{PictureUrl, picture_urls};

/// How a file shows pictures to a model that sees.
#[derive(Clone, Copy)]
pub struct Seeing<'a> {
    pub vision: VisionInfo,
    /// Takes them from the file.
    pub shelf: &'a dyn PictureShelf,
}

/// The URL of picture `number`, counted from 0, that a line shows.
pub fn picture_url(line: &[u8], number: usize) -> Option<String> {
    let line = line.strip_prefix(MARK.as_bytes()).unwrap_or(line);
    let object = parse_object(line).ok()?;
    shown(&object).get(number).map(|picture| picture.url.to_owned())
}

/// The pictures of a well-formed line, in order.
pub(super) fn shown(line: &Map<String, Value>) -> Vec<PictureUrl<'_>> {
    line.get("messages").and_then(Value::as_array).map_or_else(Vec::new, |list| picture_urls(list))
}

/// Gives each of so many pictures its tokens, which bear no loss, and says where they are.
///
/// # Errors
/// If the model sees none, or the template has written another number of them.
pub(super) fn make_room(
    seeing: Option<Seeing<'_>>,
    example: &mut Example,
    pictures: usize,
) -> Result<Vec<Range<usize>>, Problem> {
    if pictures == 0 {
        return Ok(Vec::new());
    }
    let blind = || Problem::Picture { reason: "the model sees no pictures".to_owned() };
    let Seeing { vision, .. } = seeing.ok_or_else(blind)?;
    let (ids, starts) = vision.make_room(&example.ids);
    if starts.len() != pictures {
        return Err(Problem::PicturePlaces { pictures, places: starts.len() });
    }
    example.labels = room_for_labels(&example.ids, &example.labels, vision);
    example.ids = ids;
    Ok(starts.into_iter().map(|start| start..start + vision.tokens_per_image).collect())
}

/// The labels of `ids` as [`VisionInfo::make_room`] widens them.
fn room_for_labels(ids: &[u32], labels: &[i32], vision: VisionInfo) -> Vec<i32> {
    let widened = ids.iter().zip(labels).flat_map(|(&id, &label)| match id == vision.image_token {
        true => std::iter::repeat_n(IGNORE_INDEX, vision.tokens_per_image),
        false => std::iter::repeat_n(label, 1),
    });
    widened.collect()
}

/// Takes the pictures of the line at `place` for which there are `rooms`; all bad ones are found.
pub(super) fn take(
    seeing: Option<Seeing<'_>>,
    pictures: &[PictureUrl<'_>],
    place: Range<u64>,
    rooms: impl Iterator<Item = Range<usize>>,
    findings: &mut Findings,
) -> Option<Vec<ExamplePicture>> {
    let Some(Seeing { shelf, .. }) = seeing else { return Some(Vec::new()) };
    let mut taken = Some(Vec::new());
    for (number, (PictureUrl { path, url }, tokens)) in pictures.iter().zip(rooms).enumerate() {
        match (shelf.take(place.clone(), number, url), &mut taken) {
            (Ok(picture), Some(taken)) => taken.push(ExamplePicture { tokens, picture }),
            (Ok(_), None) => {}
            (Err(reason), _) => {
                findings.add(format!("$.messages{path}"), Problem::Picture { reason });
                taken = None;
            }
        }
    }
    taken
}
