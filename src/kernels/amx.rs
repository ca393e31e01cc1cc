//! Matrix tiles, AMX: eight registers of sixteen rows by 64 bytes, and products of two of them.
//!
//! Intel's "Architectures Software Developer's Manual", volume 1, chapter 18. The compiler has no
//! stable names for these instructions, so each is one line of assembly here, with the number of
//! its tiles as a constant. Tiles keep what they hold from one call to the next, since nothing but
//! these functions touches them; [`Tiles`] gives them shapes and a [`Session`] gives them back.
//!
//! A product reads `A (m, k)` by rows and `B (k, n)` with two values of a column side by side in a
//! word, as the packed weights of [`super::bf16`] have them. What a row gives depends neither on how
//! many there are nor on the other rows.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::cell::Cell;

use super::line::Line;

/// Rows of a tile.
pub(super) const ROWS: usize = 16;

/// Rows that two tiles of `A` hold: so many share what is read of `B`.
pub(super) const PAIR_ROWS: usize = 2 * ROWS;

/// Whether the processor has tiles for bf16 and int8, and the system lets this process use them.
pub(super) fn granted() -> bool {
    /// Leaf 7, register `edx`: AMX-BF16, AMX-TILE, AMX-INT8.
    const ALL: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & ALL == ALL && ask()
}

/// Asks the system for the state of the tiles, for all threads of this process.
#[cfg(target_os = "linux")]
fn ask() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn ask() -> bool {
    false
}

/// The shapes of all eight tiles, palette 1: rows, and bytes per row.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// Rows of each tile, and bytes per row.
type Rows = [(u8, u8); 8];

thread_local! {
    /// The shapes this thread's tiles have.
    static SHAPES: Cell<Option<Rows>> = const { Cell::new(None) };
}

/// Gives this thread's tiles back when it is dropped. Setting shapes takes as long as twenty products,
/// so one lives as long as a work item.
pub(super) struct Session(());

impl Session {
    pub fn new() -> Self {
        Self(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if SHAPES.take().is_some() {
            // SAFETY: tiles have shapes, so the instruction exists.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        }
    }
}

/// The tiles of this thread, with shapes until they get others or the [`Session`] around ends.
pub(super) struct Tiles(());

impl Tiles {
    /// Gives tile `i` `shapes[i]`: rows, 1 to 16, and bytes per row, up to 64. What they held is lost.
    ///
    /// # Safety
    /// [`granted`] must have said yes.
    #[inline]
    pub unsafe fn shaped(shapes: Rows) -> Self {
        if SHAPES.get() != Some(shapes) {
            let mut all =
                Shapes { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
            for (i, (rows, bytes)) in shapes.into_iter().enumerate() {
                (all.rows[i], all.bytes[i]) = (rows, bytes.into());
            }
            // SAFETY: the instruction exists by this function's contract and reads 64 bytes.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const all, options(nostack, readonly)) };
            SHAPES.set(Some(shapes));
        }
        Self(())
    }

    /// Zeros in tile `T`.
    #[inline(always)]
    pub fn zero<const T: u8>(&self) {
        // SAFETY: tiles have shapes once there is a `self`.
        unsafe { asm!("tilezero tmm{}", const T, options(nostack, nomem, preserves_flags)) };
    }

    /// Reads tile `T`, its rows `stride` bytes apart.
    ///
    /// # Safety
    /// The rows must be readable.
    #[inline(always)]
    pub unsafe fn load<const T: u8>(&self, from: *const u8, stride: usize) {
        // SAFETY: by this function's contract; tiles have shapes once there is a `self`.
        unsafe {
            asm!("tileloadd tmm{}, [{} + {} * 1]", const T, in(reg) from, in(reg) stride,
                options(nostack, readonly, preserves_flags));
        }
    }

    /// Writes tile `T`, its rows `stride` bytes apart.
    ///
    /// # Safety
    /// The rows must be writable.
    #[inline(always)]
    pub unsafe fn store<const T: u8>(&self, to: *mut u8, stride: usize) {
        // SAFETY: by this function's contract; tiles have shapes once there is a `self`.
        unsafe {
            asm!("tilestored [{} + {} * 1], tmm{}", in(reg) to, in(reg) stride, const T,
                options(nostack, preserves_flags));
        }
    }

    /// `C += A · B` of bf16 values with sums in `f32`: for each word along `k` the products of its
    /// low halves in one chain from zero, those of its high halves in another, then both to `C`.
    #[inline(always)]
    pub fn bf16<const C: u8, const A: u8, const B: u8>(&self) {
        // SAFETY: tiles have shapes once there is a `self`.
        unsafe {
            asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const C, const A, const B,
                options(nostack, nomem, preserves_flags));
        }
    }

    /// `C += A · B` of signed bytes, four of a column side by side in a word, with sums in `i32`.
    #[inline(always)]
    pub fn int8<const C: u8, const A: u8, const B: u8>(&self) {
        // SAFETY: tiles have shapes once there is a `self`.
        unsafe {
            asm!("tdpbssd tmm{}, tmm{}, tmm{}", const C, const A, const B,
                options(nostack, nomem, preserves_flags));
        }
    }
}

/// Operations of a round of [`busy`].
pub(super) const BUSY_OPERATIONS: usize = 4 * 2 * ROWS * ROWS * 32;

/// Multiplies tiles of zeros, four times in each of `rounds`, without touching memory.
///
/// # Safety
/// [`granted`] must have said yes.
pub(super) unsafe fn busy(rounds: usize) {
    let _session = Session::new();
    // SAFETY: by this function's contract.
    let tiles = unsafe { Tiles::shaped([(16, 64); 8]) };
    for _ in 0..rounds {
        tiles.bf16::<0, 4, 6>();
        tiles.bf16::<1, 4, 7>();
        tiles.bf16::<2, 5, 6>();
        tiles.bf16::<3, 5, 7>();
    }
}

/// Rows of the upper and of the lower tile, one for none, of up to 32.
pub(super) fn halves(rows: usize) -> (u8, u8) {
    (rows.min(ROWS) as u8, rows.saturating_sub(ROWS).max(1) as u8)
}

/// The address of a line's bytes, for [`Tiles::load`].
#[inline(always)]
pub(super) fn bytes(lines: &[Line]) -> *const u8 {
    lines.as_ptr().cast()
}
