//! How much training goes between two steps of serving.
//!
//! A budget holds on average, whatever a unit takes: a unit runs when enough was saved for what its
//! kind took lately. One gap is filled to the nearest unit, and takes a longer unit by itself.

use std::collections::HashMap;
use std::time::Duration;

use crate::train::Unit;

/// Training gets at least so much of a step's own time, or long prompts would halt it.
const LEAST_SHARE: f64 = 0.1;
/// So many units are saved up at most.
const SAVED_UNITS: f64 = 4.0;
/// Weight of the newest measurement of a unit.
const NEWEST: f64 = 0.3;

/// A step of serving that is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served {
    /// Seconds it took.
    pub seconds: f64,
    /// Seconds that the next one leaves room for, see [`super::plan`].
    pub room: f64,
}

/// The account of one device.
#[derive(Debug)]
pub(super) struct Ration {
    /// Time per step of serving, if the operator gave it.
    budget: Option<Duration>,
    /// Seconds this gap has room for.
    room: f64,
    /// Seconds spent in it.
    spent: f64,
    /// Seconds saved, or owed if negative.
    saved: f64,
    /// Seconds a unit of each kind takes, smoothed.
    lengths: HashMap<Unit, f64>,
}

impl Ration {
    /// Nothing is saved, no length known.
    pub fn new(budget: Option<Duration>) -> Self {
        Self { budget, room: 0.0, spent: 0.0, saved: 0.0, lengths: HashMap::new() }
    }

    /// A gap opens after a step.
    pub fn open(&mut self, served: Served) {
        self.room = self.budget.map_or(served.room, |budget| budget.as_secs_f64());
        self.spent = 0.0;
        self.saved += match self.budget {
            Some(_) => self.room,
            None => self.room.max(LEAST_SHARE * served.seconds),
        };
    }

    /// Whether a unit of this kind may run now. If not, what is saved waits for the next gap.
    pub fn allows(&mut self, unit: Unit) -> bool {
        let length = self.length(unit);
        // More is not saved up: it would be spent at once.
        self.saved = self.saved.min((SAVED_UNITS * length).max(self.room));
        let fits = self.spent + length / 2.0 <= self.room;
        self.saved >= length && (fits || self.spent == 0.0)
    }

    /// Seconds spent in this gap, where no budget of the operator's covers them.
    pub fn spent_seconds(&self) -> f64 {
        if self.budget.is_some() { 0.0 } else { self.spent }
    }

    /// A unit took so long.
    pub fn note(&mut self, unit: Unit, seconds: f64) {
        let known = self.lengths.entry(unit).or_insert(seconds);
        *known += NEWEST * (seconds - *known);
        self.spent += seconds;
        self.saved -= seconds;
    }

    /// Nobody is served: there is nothing to save up for, or to pay off.
    pub fn rest(&mut self) {
        (self.spent, self.saved) = (0.0, 0.0);
    }

    /// Another run comes, with units of its own.
    pub fn forget(&mut self) {
        self.lengths.clear();
    }

    /// What a unit of this kind takes; a guess of nothing lets the first one be measured.
    fn length(&self, unit: Unit) -> f64 {
        self.lengths.get(&unit).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECODING: Served = Served { seconds: 0.010, room: 0.013 };

    /// Gaps until `seconds` of work in units of `length` are done, and the longest of them.
    fn work(ration: &mut Ration, served: Served, length: f64, units: usize) -> (usize, f64) {
        let (mut done, mut gaps, mut longest) = (0, 0, 0f64);
        while done < units {
            ration.open(served);
            gaps += 1;
            while done < units && ration.allows(Unit::Update) {
                ration.note(Unit::Update, length);
                done += 1;
            }
            longest = longest.max(ration.spent);
        }
        (gaps, longest)
    }

    #[test]
    fn a_budget_holds_on_average_when_units_are_longer() {
        let mut ration = Ration::new(Some(Duration::from_millis(10)));
        let (gaps, longest) = work(&mut ration, DECODING, 0.025, 101);
        assert!((250..=253).contains(&gaps), "{gaps} gaps");
        assert_eq!(longest, 0.025);
    }

    #[test]
    fn a_gap_is_filled_with_short_units_to_the_nearest() {
        let mut ration = Ration::new(None);
        let (gaps, longest) = work(&mut ration, DECODING, 0.004, 900);
        let average = 900.0 * 0.004 / gaps as f64;
        assert!((0.0115..=0.0131).contains(&average), "{average}");
        assert!(longest <= 0.013 + 0.002 + 1e-9, "{longest}");
    }

    #[test]
    fn steps_that_read_prompts_leave_little_but_never_nothing() {
        let prompts = Served { seconds: 0.018, room: 0.005 };
        let long = Served { seconds: 0.5, room: 0.005 };
        let (some, _) = work(&mut Ration::new(None), prompts, 0.001, 100);
        assert!((19..=21).contains(&some), "{some} gaps");
        let (few, _) = work(&mut Ration::new(None), long, 0.025, 10);
        assert!(few <= 11, "{few} gaps");
    }

    #[test]
    fn what_is_saved_is_bounded() {
        let mut ration = Ration::new(Some(Duration::from_millis(10)));
        ration.note(Unit::Update, 0.020);
        for _ in 0..1000 {
            ration.open(DECODING);
            let _nothing_runs = ration.allows(Unit::Update);
            assert!(ration.saved <= 0.080 + 1e-9);
        }
        ration.rest();
        assert!(!ration.allows(Unit::Update));
    }
}
