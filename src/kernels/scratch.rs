//! Memory that a thread reuses from one piece of work to the next.

use std::cell::RefCell;

use super::line::{self, Line, Lines};

thread_local! {
    /// One buffer per depth of nesting, the outermost last.
    static BUFFERS: RefCell<Vec<Lines>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with `values` values of undefined content, aligned to 64 bytes. Calls may nest;
/// nothing is allocated once a thread has seen its largest request at each depth.
pub(crate) fn with_values<R>(values: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    with_lines(values.div_ceil(16), |lines| work(&mut line::values_mut(lines)[..values]))
}

/// The same in lines.
pub(crate) fn with_lines<R>(lines: usize, work: impl FnOnce(&mut [Line]) -> R) -> R {
    let mut buffer = BUFFERS.with(|buffers| buffers.borrow_mut().pop()).unwrap_or_default();
    if buffer.len() < lines {
        buffer = line::zeroed(lines);
    }
    let result = work(&mut buffer[..lines]);
    BUFFERS.with(|buffers| buffers.borrow_mut().push(buffer));
    result
}
