//! Cosines and sines are the same in every layer of a step: they are computed once.

use crate::backend::{Places, Rope};
use crate::kernels::heads::RopeRows;

/// Those of the last steps; a model has one or two ropes.
#[derive(Debug, Default)]
pub(super) struct Turns(Vec<Turn>);

#[derive(Debug)]
struct Turn {
    rope: Rope,
    places: Places,
    rows: RopeRows,
}

/// Both ropes of a model that serves and trains by turns.
const MOST: usize = 4;

impl Turns {
    /// Cosines and sines of the rows at `places`.
    pub fn rows(&mut self, rope: &Rope, places: &Places) -> &RopeRows {
        let known = self.0.iter().position(|turn| turn.rope == *rope && turn.places == *places);
        let index = known.unwrap_or_else(|| {
            if self.0.len() == MOST {
                self.0.remove(0);
            }
            let (rope, places) = (rope.clone(), places.clone());
            self.0.push(Turn { rows: computed(&rope, &places), rope, places });
            self.0.len() - 1
        });
        &self.0[index].rows
    }
}

fn computed(rope: &Rope, places: &Places) -> RopeRows {
    let (sets, of_rows) = rope.sets(places);
    let mut rows = RopeRows::new(rope.pairs(), rope.scale);
    for (&position, set) in places.positions.iter().zip(of_rows) {
        rows.push(position, &sets[set as usize * rope.pairs()..][..rope.pairs()]);
    }
    rows
}
