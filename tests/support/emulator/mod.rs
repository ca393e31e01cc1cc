//! A machine that runs the kernels of the CUDA backend on the CPU: their text, compiled as C behind
//! `shim.c`, called by the backend as a GPU would be. What it computes is what the text says; speed,
//! and what only hardware does wrong, it does not show.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tandem::backend::cuda::CudaBackend;
use tandem::backend::cuda::machine::{Address, Launch, Machine, MachineError, THREADS};
use tandem::backend::cuda::source::Module;

const SHIM: &str = include_str!("shim.c");
/// What lies before and behind every allocation, to notice kernels that write beside it.
const FENCE: usize = 256;
/// Fresh memory is full of it: as f32, not a number.
const UNWRITTEN: u8 = 0xff;
const FENCED: u8 = 0xa5;

/// The CUDA backend on the emulator of a GPU with tensor cores.
pub fn cuda() -> CudaBackend {
    CudaBackend::new(Box::new(Emulator { tensor_cores: true, allocated: Mutex::default() }))
}

/// The same without, as before sm_80.
#[allow(dead_code)] // the backend's own tests use it
pub fn cuda_without_tensor_cores() -> CudaBackend {
    CudaBackend::new(Box::new(Emulator::default()))
}

/// Memory is the process's own; addresses are pointers.
#[derive(Default)]
pub struct Emulator {
    /// Bytes by address.
    allocated: Mutex<BTreeMap<Address, usize>>,
    tensor_cores: bool,
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + 2 * FENCE, 256).expect("a size")
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Emulator {
    /// A pointer to bytes that lie within one allocation.
    fn pointer(&self, at: Address, bytes: usize) -> *mut u8 {
        let allocated = locked(&self.allocated);
        let (start, room) = allocated.range(..=at).next_back().expect("an address on the device");
        assert!(at + bytes as u64 <= start + *room as u64, "beyond what was allocated");
        at as *mut u8
    }
}

/// Gives an allocation back, its fences unharmed.
fn release(at: Address, bytes: usize) {
    // SAFETY: `allocate` made it, with both fences, and nobody uses it any more.
    unsafe {
        let start = (at as *mut u8).sub(FENCE);
        for fence in [start, start.add(FENCE + bytes)] {
            let fence = std::slice::from_raw_parts(fence, FENCE);
            assert!(fence.iter().all(|&byte| byte == FENCED), "a kernel wrote beside a matrix");
        }
        dealloc(start, layout(bytes));
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::mem::take(&mut *locked(&self.allocated))
                .into_iter()
                .for_each(|(at, n)| release(at, n));
        }
    }
}

impl Machine for Emulator {
    fn allocate(&self, bytes: usize) -> Result<Address, MachineError> {
        // SAFETY: the layout is not empty; the three ranges written lie in it.
        let at = unsafe {
            let start = alloc(layout(bytes));
            assert!(!start.is_null(), "no memory");
            ptr::write_bytes(start, FENCED, bytes + 2 * FENCE);
            ptr::write_bytes(start.add(FENCE), UNWRITTEN, bytes);
            start.add(FENCE) as Address
        };
        locked(&self.allocated).insert(at, bytes);
        Ok(at)
    }

    fn free(&self, at: Address) {
        let bytes = locked(&self.allocated).remove(&at).expect("it was allocated");
        release(at, bytes);
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), MachineError> {
        let to = self.pointer(to, bytes.len());
        // SAFETY: `pointer` checked the room; host memory lies elsewhere.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), MachineError> {
        let from = self.pointer(from, bytes.len());
        // SAFETY: as in `write`.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), MachineError> {
        let (from, to) = (self.pointer(from, bytes), self.pointer(to, bytes));
        // SAFETY: `pointer` checked both.
        unsafe { ptr::copy(from, to, bytes) };
        Ok(())
    }

    fn clear(&self, at: Address, bytes: usize) -> Result<(), MachineError> {
        let at = self.pointer(at, bytes);
        // SAFETY: `pointer` checked the room.
        unsafe { ptr::write_bytes(at, 0, bytes) };
        Ok(())
    }

    fn launch(&self, launch: Launch<'_>) -> Result<(), MachineError> {
        let Launch { module, kernel, grid: [width, height], args } = launch;
        let mut libraries = locked(&LIBRARIES);
        let libraries = libraries.get_or_insert_default();
        let library = *libraries.entry(module).or_insert_with(|| load(module));
        let bytes = library.symbol(&format!("{kernel}_bytes")).cast::<c_uint>();
        // SAFETY: `KERNEL` in `shim.c` defines both beside `emulate`, and the struct's size is
        // compared before the kernel reads it.
        let deadlock = unsafe {
            assert_eq!(
                *bytes as usize,
                size_of_val(args),
                "{kernel}: its struct has other members"
            );
            let emulate: Emulate = std::mem::transmute(library.symbol("emulate"));
            emulate(library.symbol(kernel), args.as_ptr().cast(), width, height, THREADS as c_uint)
        };
        assert_eq!(deadlock, 0, "{kernel}: the threads of a warp wait for different things");
        Ok(())
    }

    fn has_tensor_cores(&self) -> bool {
        self.tensor_cores
    }

    fn free_bytes(&self) -> Option<usize> {
        Some(1 << 30)
    }
}

type Emulate = unsafe extern "C" fn(*mut c_void, *const c_void, c_uint, c_uint, c_uint) -> c_int;

/// Kernels keep their shared memory in statics, so that one runs at a time.
static LIBRARIES: Mutex<Option<HashMap<Module, Library>>> = Mutex::new(None);

#[derive(Clone, Copy)]
struct Library(usize);

impl Library {
    fn symbol(self, name: &str) -> *mut c_void {
        let c_name = CString::new(name).expect("a name");
        // SAFETY: the handle is that of an open library, which is never closed.
        let symbol = unsafe { libc::dlsym(self.0 as *mut c_void, c_name.as_ptr()) };
        assert!(!symbol.is_null(), "there is no `{name}`");
        symbol
    }
}

/// The module as a library, compiled unless an earlier test did it.
fn load(module: Module) -> Library {
    let text = [SHIM, &module.text()].concat();
    let mut hash = DefaultHasher::new();
    (&text, std::env::consts::ARCH).hash(&mut hash);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/emulator");
    let library = folder.join(format!("{}-{:016x}.so", module.name(), hash.finish()));
    if !library.exists() {
        compile(&text, &folder, &library);
    }
    let path = CString::new(library.to_str().expect("a path in UTF-8")).expect("a path");
    // SAFETY: the library is ours and has no initialisers.
    let handle = unsafe { libc::dlopen(path.as_ptr() as *const c_char, libc::RTLD_NOW) };
    assert!(!handle.is_null(), "{} cannot be loaded", library.display());
    Library(handle as usize)
}

/// Other tests may do the same at the same time; the library appears when it is whole.
fn compile(text: &str, folder: &Path, library: &PathBuf) {
    std::fs::create_dir_all(folder).expect("a folder for libraries");
    let own = tempfile::tempdir_in(folder).expect("a folder of one's own");
    let (source, made) = (own.path().join("kernels.c"), own.path().join("kernels.so"));
    std::fs::write(&source, text).expect("the source is written");
    let options = ["-std=gnu11", "-O2", "-w", "-shared", "-fPIC", "-ffp-contract=off"];
    let mut cc = Command::new("cc");
    cc.args(options).args(["-U_FORTIFY_SOURCE", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]);
    if cfg!(target_arch = "x86_64") && std::arch::is_x86_feature_detected!("fma") {
        cc.arg("-mfma"); // the same numbers as without, much sooner
    }
    let out = cc.arg(&source).arg("-o").arg(&made).arg("-lm").output().expect("a C compiler");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    std::fs::rename(&made, library).expect("the library takes its place");
}
