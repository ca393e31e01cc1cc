//! What the backend asks of a GPU: memory, copies, launches. The driver is one such machine; tests
//! bring another, which runs the same kernel text on the CPU.

use super::source::Module;

/// A place in the memory of a machine.
pub type Address = u64;

/// A kernel and how often it runs.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub module: Module,
    pub kernel: &'static str,
    /// Blocks, in two directions; each has [`THREADS`] threads.
    pub grid: [u32; 2],
    /// The members of the kernel's struct, eight bytes each.
    pub args: &'a [u64],
}

/// Threads of every block.
pub const THREADS: usize = 256;
/// Warps of every block.
pub const WARPS: usize = THREADS / 32;

/// Why a machine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("{bytes} bytes do not fit into its memory")]
    OutOfMemory { bytes: usize },
    #[error("{call} failed: {reason}")]
    Call { call: &'static str, reason: String },
    #[error("kernel `{kernel}` cannot be compiled: {reason}")]
    Compile { kernel: &'static str, reason: String },
}

/// A device with its own memory. Calls take effect in order; what is read has been computed.
///
/// Addresses and kernels are trusted: whoever calls [`Machine::launch`] has checked that what the
/// kernel touches lies within what was allocated.
pub trait Machine: Send + 'static {
    /// Room for so many bytes, of undefined content, aligned to 256 bytes.
    ///
    /// # Errors
    /// [`MachineError::OutOfMemory`].
    fn allocate(&self, bytes: usize) -> Result<Address, MachineError>;
    /// Gives back what [`Machine::allocate`] gave.
    fn free(&self, at: Address);
    /// Copies from the host.
    ///
    /// # Errors
    /// If the device has failed.
    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), MachineError>;
    /// Copies to the host.
    ///
    /// # Errors
    /// If the device has failed.
    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), MachineError>;
    /// Copies within the device; the ranges do not overlap.
    ///
    /// # Errors
    /// If the device has failed.
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), MachineError>;
    /// Fills with zeros.
    ///
    /// # Errors
    /// If the device has failed.
    fn clear(&self, at: Address, bytes: usize) -> Result<(), MachineError>;
    /// Runs a kernel.
    ///
    /// # Errors
    /// If it cannot be compiled or the device has failed.
    fn launch(&self, launch: Launch<'_>) -> Result<(), MachineError>;
    /// Whether it has tensor cores that multiply bf16.
    fn has_tensor_cores(&self) -> bool;
    /// Bytes that are not allocated, where that is known.
    fn free_bytes(&self) -> Option<usize>;
}
