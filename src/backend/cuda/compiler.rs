//! NVRTC, NVIDIA's compiler as a library: from the text of a kernel file to the machine code of one
//! architecture. It needs no GPU.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::libraries::{Nvrtc, nvrtc_anywhere, nvrtc_in};
use super::source::Module;

/// The oldest version whose code is checked in the tests.
const OLDEST: i32 = 12;

/// Why kernels cannot be compiled here.
#[derive(Debug, thiserror::Error)]
pub enum CompilerError {
    #[error(
        "NVIDIA's run-time compiler (libnvrtc) was not found; install a CUDA toolkit or the Python \
         package nvidia-cuda-nvrtc, and name its folder with `--cuda-libraries` if it lies elsewhere"
    )]
    NotFound,
    #[error("{folder} holds no libnvrtc beside its libnvrtc-builtins")]
    NotInFolder { folder: PathBuf },
    #[error("{library} cannot be opened: {reason}")]
    Open { library: PathBuf, reason: String },
    #[error("the run-time compiler is of CUDA {found}; at least {OLDEST} is needed")]
    TooOld { found: i32 },
}

/// The opened library.
#[derive(Clone, Copy, Debug)]
pub struct Compiler {
    /// Of CUDA: major, minor.
    pub version: (i32, i32),
}

impl Compiler {
    /// Opens the library in `folder` or below it; without a folder, wherever it is found.
    ///
    /// # Errors
    /// If there is none, or one that cannot be used.
    pub fn open(folder: Option<&Path>) -> Result<Self, CompilerError> {
        match folder {
            Some(folder) => {
                let missing = || CompilerError::NotInFolder { folder: folder.to_owned() };
                load(&nvrtc_in(folder).ok_or_else(missing)?)?;
            }
            None if !present() => load(&nvrtc_anywhere().ok_or(CompilerError::NotFound)?)?,
            None => {}
        }
        if !present() {
            return Err(CompilerError::NotFound);
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is present, and writes two numbers.
        let asked = unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result();
        match asked {
            Ok(()) if major >= OLDEST => Ok(Self { version: (major, minor) }),
            _ => Err(CompilerError::TooOld { found: major }),
        }
    }

    /// The architectures it compiles for: 75 is sm_75.
    pub fn architectures(self) -> Vec<u32> {
        let mut count: c_int = 0;
        // SAFETY: the library writes one number, and then as many as it said.
        let found = unsafe {
            let asked = sys::nvrtcGetNumSupportedArchs(&mut count).result();
            let mut found: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or(0)];
            asked
                .and_then(|()| sys::nvrtcGetSupportedArchs(found.as_mut_ptr()).result())
                .map(|()| found)
        };
        found.unwrap_or_default().into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect()
    }

    /// Machine code of a module for one architecture.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn compile(self, module: Module, architecture: u32) -> Result<Vec<u8>, String> {
        let text = CString::new(module.text()).map_err(|error| error.to_string())?;
        let name =
            CString::new(format!("{}.cu", module.name())).map_err(|error| error.to_string())?;
        let program =
            result::create_program(&text, Some(&name)).map_err(|error| error.to_string())?;
        // SAFETY: the program was just created, and is destroyed once, here.
        unsafe {
            let code = machine_code(program, &options(architecture));
            let _ = result::destroy_program(program);
            code
        }
    }

    /// What distinguishes the machine code of a module from any other.
    pub fn key(self, module: Module, architecture: u32) -> String {
        let mut hash = Sha256::new();
        hash.update(module.text());
        hash.update(format!("{:?} {:?}", options(architecture), self.version));
        hex::encode(&hash.finalize()[..16])
    }
}

fn options(architecture: u32) -> [String; 4] {
    let given = ["--fmad=false", "--std=c++17", "--diag-suppress=177"].map(str::to_owned);
    let [fmad, standard, quiet] = given;
    [format!("--gpu-architecture=sm_{architecture}"), fmad, standard, quiet]
}

/// # Safety
/// The program must have been created and not destroyed.
unsafe fn machine_code(program: sys::nvrtcProgram, options: &[String]) -> Result<Vec<u8>, String> {
    // SAFETY: as promised; the buffer is as large as the library said.
    unsafe {
        if let Err(error) = result::compile_program(program, options) {
            let log = result::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c: c_char| c as u8).collect();
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
            return Err(format!("{error}: {}", log.trim()));
        }
        let mut size = 0usize;
        sys::nvrtcGetCUBINSize(program, &mut size).result().map_err(|error| error.to_string())?;
        let mut code = vec![0u8; size];
        let asked = sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result();
        asked.map_err(|error| error.to_string()).map(|()| code)
    }
}

fn present() -> bool {
    // SAFETY: opening the library runs its initialisers, which do nothing but initialise it.
    unsafe { sys::is_culib_present() }
}

/// Opens both libraries for good, so that whoever asks for them by name gets these.
fn load(nvrtc: &Nvrtc) -> Result<(), CompilerError> {
    for library in [&nvrtc.builtins, &nvrtc.library] {
        let open = |reason: String| CompilerError::Open { library: library.clone(), reason };
        let path = CString::new(library.as_os_str().as_bytes());
        let path = path.map_err(|error| open(error.to_string()))?;
        // SAFETY: the path ends in zero; NVIDIA's initialisers do nothing but initialise.
        let failed =
            unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() };
        if failed {
            return Err(open(loader_error()));
        }
    }
    Ok(())
}

/// What the loader says about its last failure.
fn loader_error() -> String {
    // SAFETY: `dlerror` gives a string that ends in zero, or none.
    unsafe {
        let error = libc::dlerror();
        match error.is_null() {
            true => "no reason was given".to_owned(),
            false => CStr::from_ptr(error).to_string_lossy().into_owned(),
        }
    }
}
