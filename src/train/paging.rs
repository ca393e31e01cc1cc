//! Optimiser state in the host's memory: quantised, or in a file beyond a budget.
//!
//! Dettmers et al. 2023, "QLoRA", section 3, "Paged Optimizers": state that does not fit goes out
//! and comes back for the moment of its update. A step touches every tensor once, in one order, so
//! what stays is settled once: the first tensors that fit the budget. The others lie in a file and
//! visit memory one at a time. The file is read and written, not mapped: a disk that is full is
//! then an error of this run, and the memory taken is the budget plus one tensor.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::backend::{HostMoments, MOMENTS_BLOCK, Moments8};

/// Both moments of one tensor of `len` values.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Moments {
    F32 { first: Vec<f32>, second: Vec<f32> },
    Bits8 { first: Vec<u8>, second: Vec<u8>, first_absmax: Vec<f32>, second_absmax: Vec<f32> },
}

impl Moments {
    fn zeroed(len: usize, bits8: bool) -> Self {
        if !bits8 {
            return Self::F32 { first: vec![0.0; len], second: vec![0.0; len] };
        }
        let absmax = vec![0.0; len.div_ceil(MOMENTS_BLOCK)];
        let (first, second) = (vec![0; len], vec![0; len]);
        Self::Bits8 { first, second, first_absmax: absmax.clone(), second_absmax: absmax }
    }

    fn view(&mut self) -> HostMoments<'_> {
        match self {
            Self::F32 { first, second } => HostMoments::F32 { first, second },
            Self::Bits8 { first, second, first_absmax, second_absmax } => {
                HostMoments::Bits8(Moments8 { first, second, first_absmax, second_absmax })
            }
        }
    }

    /// Its parts, by the ends of their names in a checkpoint.
    pub fn parts(&self) -> Vec<(&'static str, &[u8])> {
        fn bytes(values: &[f32]) -> &[u8] {
            bytemuck::cast_slice(values)
        }
        match self {
            Self::F32 { first, second } => {
                vec![("exp_avg", bytes(first)), ("exp_avg_sq", bytes(second))]
            }
            Self::Bits8 { first, second, first_absmax, second_absmax } => vec![
                ("exp_avg", first),
                ("exp_avg_sq", second),
                ("exp_avg_absmax", bytes(first_absmax)),
                ("exp_avg_sq_absmax", bytes(second_absmax)),
            ],
        }
    }

    /// The same parts, to be written.
    pub fn parts_mut(&mut self) -> Vec<(&'static str, &mut [u8])> {
        fn bytes(values: &mut [f32]) -> &mut [u8] {
            bytemuck::cast_slice_mut(values)
        }
        match self {
            Self::F32 { first, second } => {
                vec![("exp_avg", bytes(first)), ("exp_avg_sq", bytes(second))]
            }
            Self::Bits8 { first, second, first_absmax, second_absmax } => vec![
                ("exp_avg", first),
                ("exp_avg_sq", second),
                ("exp_avg_absmax", bytes(first_absmax)),
                ("exp_avg_sq_absmax", bytes(second_absmax)),
            ],
        }
    }

    fn size_bytes(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    fn read(&mut self, file: &File, mut offset: u64) -> io::Result<()> {
        for (_, bytes) in self.parts_mut() {
            file.read_exact_at(bytes, offset)?;
            offset += bytes.len() as u64;
        }
        Ok(())
    }

    fn write(&self, file: &File, mut offset: u64) -> io::Result<()> {
        for (_, bytes) in self.parts() {
            file.write_all_at(bytes, offset)?;
            offset += bytes.len() as u64;
        }
        Ok(())
    }
}

/// The state of every tensor of a run.
#[derive(Debug)]
pub(super) struct HostState {
    places: Vec<Place>,
    /// Of those that are not resident.
    file: Option<File>,
}

#[derive(Debug)]
enum Place {
    Resident(Moments),
    Filed { offset: u64, len: usize, bits8: bool },
}

impl HostState {
    /// Zeroed state for tensors of these lengths; `bits8` says which are quantised. What goes beyond
    /// `budget` bytes lies in a nameless file in `folder`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn new(
        lengths: &[usize],
        bits8: impl Fn(usize) -> bool,
        budget: Option<u64>,
        folder: &Path,
    ) -> io::Result<Self> {
        let (mut places, mut left, mut filed) = (Vec::new(), budget.unwrap_or(u64::MAX), 0);
        for &len in lengths {
            let moments = Moments::zeroed(len, bits8(len));
            let size = moments.size_bytes();
            places.push(if size <= left {
                left -= size;
                Place::Resident(moments)
            } else {
                let offset = filed;
                filed += size;
                Place::Filed { offset, len, bits8: bits8(len) }
            });
        }
        let file = (filed > 0).then(|| zeroed_file(folder, filed)).transpose()?;
        Ok(Self { places, file })
    }

    /// Calls `work` with the moments of tensor `index`, and keeps what it makes of them.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn update(&mut self, index: usize, work: impl FnOnce(HostMoments<'_>)) -> io::Result<()> {
        self.edit(index, |moments| work(moments.view()))
    }

    /// As [`HostState::update`], with the moments themselves.
    ///
    /// # Errors
    /// As there.
    pub fn edit(&mut self, index: usize, work: impl FnOnce(&mut Moments)) -> io::Result<()> {
        match (&mut self.places[index], &self.file) {
            (Place::Resident(moments), _) => work(moments),
            (Place::Filed { offset, len, bits8 }, Some(file)) => {
                let mut moments = Moments::zeroed(*len, *bits8);
                moments.read(file, *offset)?;
                work(&mut moments);
                moments.write(file, *offset)?;
            }
            (Place::Filed { .. }, None) => unreachable!("what is filed has a file"),
        }
        Ok(())
    }

    /// A copy of the moments of tensor `index`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn get(&self, index: usize) -> io::Result<Moments> {
        match (&self.places[index], &self.file) {
            (Place::Resident(moments), _) => Ok(moments.clone()),
            (Place::Filed { offset, len, bits8 }, Some(file)) => {
                let mut moments = Moments::zeroed(*len, *bits8);
                moments.read(file, *offset)?;
                Ok(moments)
            }
            (Place::Filed { .. }, None) => unreachable!("what is filed has a file"),
        }
    }
}

/// A file of zeros that has no name: however the process ends, nothing of it is left.
fn zeroed_file(folder: &Path, size: u64) -> io::Result<File> {
    let file = tempfile::tempfile_in(folder)?;
    file.set_len(size)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exceeds_the_budget_goes_to_the_file_and_comes_back_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let lengths = [100, 5000, 300, 6000];
        let state = |budget| {
            HostState::new(&lengths, |len| len >= 4096, budget, folder.path()).expect("room")
        };
        let (mut whole, mut paged) = (state(None), state(Some(1000)));
        assert!(whole.file.is_none());
        let resident = |place: &Place| matches!(place, Place::Resident(_));
        assert_eq!(
            paged.places.iter().map(resident).collect::<Vec<_>>(),
            [true, false, false, false]
        );
        for index in 0..lengths.len() {
            for round in 0..2 {
                let fill = |moments: &mut Moments| {
                    for (_, bytes) in moments.parts_mut() {
                        for (i, byte) in bytes.iter_mut().enumerate() {
                            *byte = byte.wrapping_mul(3) ^ (i + index + round) as u8;
                        }
                    }
                };
                whole.edit(index, fill).expect("memory");
                paged.edit(index, fill).expect("a file");
            }
            let parts = |state: &HostState| -> Vec<Vec<u8>> {
                let moments = state.get(index).expect("readable");
                moments.parts().iter().map(|(_, bytes)| bytes.to_vec()).collect()
            };
            assert_eq!(parts(&whole), parts(&paged), "{index}");
        }
        assert_eq!(folder.path().read_dir().expect("a folder").count(), 0, "the file has no name");
    }
}
