//! A step as the model wants it: one flat ragged batch, rows that wear the same adapter together.

use std::ops::Range;

use super::pictures::SeenPicture;
use super::plan::Slot;
use super::resident::AdapterPin;
use super::sequence::{Request, Sequence};
use crate::backend::SequenceRows;
use crate::model::PictureRows;

/// The rows of one step; its buffers are used again by the next.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub tokens: Vec<u32>,
    pub sequences: Vec<SequenceRows>,
    /// The rows whose logits are asked for, slot by slot.
    pub logits: Vec<usize>,
    pub groups: Vec<Group>,
    pub pictures: Vec<Shown>,
}

/// A picture, or the part of it that this step reads.
#[derive(Debug)]
pub(super) struct Shown {
    /// The first of its rows.
    row: usize,
    picture: SeenPicture,
    /// Of the picture's tokens.
    part: Range<usize>,
}

impl Shown {
    /// As the model wants it.
    pub fn rows(&self) -> PictureRows<'_> {
        PictureRows { row: self.row, features: self.picture.part(&self.part) }
    }
}

/// Neighbouring rows with one adapter at one scale.
#[derive(Debug)]
pub(super) struct Group {
    pub rows: Range<usize>,
    pub adapter: AdapterPin,
    pub scale: f32,
}

impl Batch {
    /// Lays the chunks of `slots` end to end and borrows their sequences' block lists; the slots
    /// are put in the order of the rows.
    pub fn fill(&mut self, slots: &mut [Slot], running: &mut [Sequence]) {
        self.clear();
        slots.sort_by(|x, y| {
            let (x_at, y_at) = (x.index, y.index);
            let (x, y) = (&running[x_at].request.space, &running[y_at].request.space);
            x.adapter.cmp(&y.adapter).then(x_at.cmp(&y_at))
        });
        for slot in slots {
            self.push(&mut running[slot.index], slot.rows);
        }
    }

    fn push(&mut self, sequence: &mut Sequence, count: usize) {
        let (first, start) = (self.tokens.len(), sequence.computed);
        let rows = first..first + count;
        let known = count - sequence.draft.len();
        self.tokens.extend_from_slice(&sequence.tokens[start..start + known]);
        self.tokens.extend_from_slice(&sequence.draft);
        self.show(&sequence.request, first, start..start + known);
        let wanted = rows.clone().filter(|row| sequence.wants_logits(start + row - first));
        self.logits.extend(wanted);
        if let Some(adapter) = &sequence.adapter {
            self.dress(rows.clone(), adapter, sequence.request.ask.adapter_scale);
        }
        let blocks = std::mem::take(&mut sequence.blocks);
        self.sequences.push(SequenceRows { rows, start, read: sequence.read, blocks });
    }

    /// The pictures of a sequence whose positions `chunk` begin at row `first`.
    fn show(&mut self, request: &Request, first: usize, chunk: Range<usize>) {
        for picture in request.seen() {
            let tokens = picture.tokens();
            let (from, to) = (tokens.start.max(chunk.start), tokens.end.min(chunk.end));
            if from < to {
                let row = first + from - chunk.start;
                // The caches' token for the picture is outside the vocabulary.
                self.tokens[row..row + to - from].copy_from_slice(&request.ask.prompt[from..to]);
                let part = from - tokens.start..to - tokens.start;
                self.pictures.push(Shown { row, picture: picture.clone(), part });
            }
        }
    }

    fn dress(&mut self, rows: Range<usize>, adapter: &AdapterPin, scale: f32) {
        match self.groups.last_mut() {
            Some(last)
                if last.rows.end == rows.start
                    && last.adapter == *adapter
                    && last.scale.to_bits() == scale.to_bits() =>
            {
                last.rows.end = rows.end;
            }
            _ => self.groups.push(Group { rows, adapter: AdapterPin::clone(adapter), scale }),
        }
    }

    /// Gives the block lists back.
    pub fn return_blocks(&mut self, slots: &[Slot], running: &mut [Sequence]) {
        for (slot, rows) in slots.iter().zip(&mut self.sequences) {
            running[slot.index].blocks = std::mem::take(&mut rows.blocks);
        }
    }

    pub fn clear(&mut self) {
        self.tokens.clear();
        self.sequences.clear();
        self.logits.clear();
        self.groups.clear();
        self.pictures.clear();
    }
}
