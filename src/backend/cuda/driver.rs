//! The machine that has a GPU: NVIDIA's driver, opened when it is asked for. A program without a
//! driver, or without a GPU, hears so in one sentence.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::ptr;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use super::compiler::{Compiler, CompilerError};
use super::machine::{Address, Launch, Machine, MachineError, THREADS};
use super::source::{Module, TENSOR_CORES};

/// Compute capability of the oldest GPU the kernels are compiled for.
const OLDEST: u32 = 75;

/// Where the compiler's libraries lie and machine code is kept.
#[derive(Clone, Debug, Default)]
pub struct DriverOptions {
    /// `None`: wherever they are found.
    pub libraries: Option<PathBuf>,
    /// Folder of compiled kernels; `None`: they are compiled at each start.
    pub cache: Option<PathBuf>,
}

/// Why there is no GPU to compute on.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("no NVIDIA driver is installed")]
    NoDriver,
    #[error("the NVIDIA driver finds no GPU")]
    NoDevice,
    #[error("there is no cuda:{ordinal}; the NVIDIA driver finds {count} GPU(s), counted from 0")]
    NoSuchDevice { ordinal: usize, count: usize },
    #[error("the NVIDIA driver does not start: {0}")]
    Driver(String),
    #[error(
        "{name} has compute capability {major}.{minor}; at least {}.{} is needed",
        OLDEST / 10, OLDEST % 10
    )]
    TooOld { name: String, major: u32, minor: u32 },
    #[error(transparent)]
    Compiler(#[from] CompilerError),
    #[error(
        "the run-time compiler is of CUDA {compiler} and the NVIDIA driver of CUDA {driver}; install \
         a newer driver, or the Python package nvidia-cuda-nvrtc-cu{driver}"
    )]
    Older { driver: i32, compiler: i32 },
    #[error("{name} failed its trial: {reason}")]
    Trial { name: String, reason: String },
    #[error("{name} (sm_{architecture}) is unknown to the run-time compiler; install a newer one")]
    Unknown { name: String, architecture: u32 },
}

/// What is known of a GPU.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub ordinal: usize,
    pub name: String,
    /// 75: compute capability 7.5.
    pub architecture: u32,
    pub memory_bytes: usize,
}

/// One GPU, with what was loaded to it.
pub struct Driver {
    pub gpu: Gpu,
    context: sys::CUcontext,
    compiler: Compiler,
    /// What code is compiled for: the GPU's architecture, or the newest before it that runs on it.
    target: u32,
    cache: Option<PathBuf>,
    loaded: RefCell<Loaded>,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<Module, sys::CUmodule>,
    functions: HashMap<(Module, &'static str), sys::CUfunction>,
}

// SAFETY: contexts, modules and functions may be used from any thread, and `enter` makes the context
// current on the one that calls.
unsafe impl Send for Driver {}

fn reason(error: DriverError) -> String {
    match (error.error_name(), error.error_string()) {
        (Ok(name), Ok(text)) => {
            format!("{} ({})", text.to_string_lossy(), name.to_string_lossy())
        }
        _ => format!("error {}", error.0 as u32),
    }
}

fn unusable(error: DriverError) -> Unusable {
    match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Unusable::NoDevice,
        _ => Unusable::Driver(reason(error)),
    }
}

/// The GPUs the driver finds.
///
/// # Errors
/// If there is no driver, or no GPU.
pub fn gpus() -> Result<Vec<Gpu>, Unusable> {
    // SAFETY: opening the driver's library runs its initialisers, which only initialise it.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unusable::NoDriver);
    }
    result::init().map_err(unusable)?;
    let count = result::device::get_count().map_err(unusable)?;
    let gpus: Vec<Gpu> = (0..count).map(describe).collect::<Result<_, _>>().map_err(unusable)?;
    if gpus.is_empty() { Err(Unusable::NoDevice) } else { Ok(gpus) }
}

fn describe(ordinal: i32) -> Result<Gpu, DriverError> {
    let device = result::device::get(ordinal)?;
    // SAFETY: the driver just named the device.
    let attribute = |what| unsafe { result::device::get_attribute(device, what) };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Gpu {
        ordinal: ordinal as usize,
        name: result::device::get_name(device)?,
        architecture: (10 * major + minor) as u32,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device)? },
    })
}

/// The newest architecture that is compiled for and runs on the GPU: the same, or a lesser minor
/// version of the same major one.
fn target(architecture: u32, known: &[u32]) -> Option<u32> {
    let runs = |&&known: &&u32| known / 10 == architecture / 10 && known <= architecture;
    known.iter().filter(runs).max().copied()
}

fn driver_version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: the driver writes one number.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version / 1000)
}

impl Driver {
    /// The GPU of this number, ready to compute.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn open(ordinal: usize, options: &DriverOptions) -> Result<Self, Unusable> {
        let gpus = gpus()?;
        let count = gpus.len();
        let found = gpus.into_iter().nth(ordinal);
        let gpu = found.ok_or(Unusable::NoSuchDevice { ordinal, count })?;
        if gpu.architecture < OLDEST {
            let (major, minor) = (gpu.architecture / 10, gpu.architecture % 10);
            return Err(Unusable::TooOld { name: gpu.name, major, minor });
        }
        let compiler = Compiler::open(options.libraries.as_deref())?;
        let driver = driver_version().map_err(unusable)?;
        if driver < compiler.version.0 {
            return Err(Unusable::Older { driver, compiler: compiler.version.0 });
        }
        let Some(target) = target(gpu.architecture, &compiler.architectures()) else {
            return Err(Unusable::Unknown { name: gpu.name, architecture: gpu.architecture });
        };
        let device = result::device::get(ordinal as i32).map_err(unusable)?;
        // SAFETY: the driver just named the device.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(unusable)?;
        let (cache, loaded) = (options.cache.clone(), RefCell::default());
        Ok(Self { gpu, context, compiler, target, cache, loaded })
    }

    fn enter(&self) -> Result<(), MachineError> {
        // SAFETY: the context was retained and is never released.
        call("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }

    /// Machine code from the cache, or compiled now and kept for the next start.
    fn code(&self, module: Module) -> Result<Vec<u8>, MachineError> {
        let file = self.cache.as_ref().map(|folder| {
            folder.join(format!(
                "{}-{}.cubin",
                module.name(),
                self.compiler.key(module, self.target)
            ))
        });
        if let Some(code) = file.as_ref().and_then(|file| std::fs::read(file).ok()) {
            return Ok(code);
        }
        let failed = |reason| MachineError::Compile { kernel: module.name(), reason };
        let code = self.compiler.compile(module, self.target).map_err(failed)?;
        if let Some(file) = file {
            keep(&file, &code);
        }
        Ok(code)
    }

    fn function(
        &self,
        module: Module,
        kernel: &'static str,
    ) -> Result<sys::CUfunction, MachineError> {
        let loaded = &mut *self.loaded.borrow_mut();
        if let Some(function) = loaded.functions.get(&(module, kernel)) {
            return Ok(*function);
        }
        let in_gpu = match loaded.modules.entry(module) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                let code = self.code(module)?;
                // SAFETY: the compiler made the code, for this architecture.
                let found = unsafe { result::module::load_data(code.as_ptr().cast()) };
                *place.insert(call("cuModuleLoadData", found)?)
            }
        };
        let name = CString::new(kernel).expect("names of kernels hold no zero");
        // SAFETY: the module is loaded and never unloaded.
        let found = unsafe { result::module::get_function(in_gpu, name) };
        let function = call("cuModuleGetFunction", found)?;
        loaded.functions.insert((module, kernel), function);
        Ok(function)
    }
}

/// Writes aside and renames, so that another start sees all of it or nothing. Without it, the next
/// start compiles again.
fn keep(file: &std::path::Path, code: &[u8]) {
    let Some(folder) = file.parent() else { return };
    let kept = std::fs::create_dir_all(folder).and_then(|()| {
        let mut aside = tempfile::NamedTempFile::new_in(folder)?;
        std::io::Write::write_all(&mut aside, code)?;
        aside.persist(file).map_err(|error| error.error)
    });
    if let Err(error) = kept {
        tracing::warn!(folder = %folder.display(), %error, "compiled kernels cannot be kept");
    }
}

fn call<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T, MachineError> {
    result.map_err(|error| MachineError::Call { call, reason: reason(error) })
}

impl Machine for Driver {
    fn allocate(&self, bytes: usize) -> Result<Address, MachineError> {
        self.enter()?;
        // SAFETY: nobody reads the memory before it is written.
        unsafe { result::malloc_sync(bytes) }.map_err(|_| MachineError::OutOfMemory { bytes })
    }

    fn free(&self, at: Address) {
        // SAFETY: `allocate` gave it; the driver waits for the work that uses it. What a lost device
        // held is gone anyway.
        let _ = self.enter().map(|()| unsafe { result::free_sync(at) });
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), MachineError> {
        self.enter()?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller allocated as many bytes there.
        call("cuMemcpyHtoD", unsafe { result::memcpy_htod_sync(to, bytes) })
    }

    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), MachineError> {
        self.enter()?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller allocated as many bytes there.
        call("cuMemcpyDtoH", unsafe { result::memcpy_dtoh_sync(bytes, from) })
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), MachineError> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller allocated both.
        call("cuMemcpyDtoD", unsafe { result::memcpy_dtod_sync(to, from, bytes) })
    }

    fn clear(&self, at: Address, bytes: usize) -> Result<(), MachineError> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller allocated as many bytes there.
        call("cuMemsetD8", unsafe { result::memset_d8_sync(at, 0, bytes) })
    }

    fn launch(&self, launch: Launch<'_>) -> Result<(), MachineError> {
        self.enter()?;
        let Launch { module, kernel, grid: [width, height], args } = launch;
        let function = self.function(module, kernel)?;
        let (grid, block) = ((width, height, 1), (THREADS as u32, 1, 1));
        let mut params = [args.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one struct of as many members, which the driver copies; the
        // caller has checked that what they point to is as large as the kernel expects.
        let launched = unsafe {
            result::launch_kernel(function, grid, block, 0, ptr::null_mut(), &mut params)
        };
        call("cuLaunchKernel", launched)
    }

    fn has_tensor_cores(&self) -> bool {
        self.target >= TENSOR_CORES
    }

    fn free_bytes(&self) -> Option<usize> {
        self.enter().ok()?;
        result::mem_get_info().ok().map(|(free, _)| free)
    }
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn code_is_compiled_for_the_newest_architecture_that_runs_there() {
        let known = [75, 80, 86, 89, 90, 100, 120];
        assert_eq!(target(90, &known), Some(90));
        assert_eq!(target(87, &known), Some(86));
        assert_eq!(target(103, &known), Some(100));
        assert_eq!(target(70, &known), None);
        assert_eq!(target(110, &known), None);
    }
}
