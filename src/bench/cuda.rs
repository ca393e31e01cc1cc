//! What there is of GPUs, and whether our kernels compile for them.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::compiler::{Compiler, CompilerError};
use crate::backend::cuda::driver::{Driver, DriverOptions, gpus};
use crate::backend::cuda::source::Module;
use crate::kernels::pool::usable_cores;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Cuda {
    pub gpus: Vec<Found>,
    /// Why `--device auto` takes the CPU; `None`: it takes the first GPU.
    pub unusable: Option<String>,
}

/// One GPU.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    pub name: String,
    pub architecture: String,
    pub memory_bytes: usize,
}

/// One module, compiled for one architecture.
#[derive(Clone, Debug, Serialize)]
pub struct Compiled {
    pub module: String,
    pub architecture: String,
    pub bytes: usize,
    pub seconds: f64,
}

/// Why kernels are not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    Compiler(#[from] CompilerError),
    #[error("`{0}` is no architecture; an example is sm_90")]
    Architecture(String),
    #[error("the kernels of {module} do not compile for sm_{architecture}: {reason}")]
    Kernel { module: String, architecture: u32, reason: String },
}

/// Asks the driver.
pub fn find(libraries: Option<&Path>) -> Cuda {
    let found = |gpu: &crate::backend::cuda::driver::Gpu| Found {
        name: gpu.name.clone(),
        architecture: format!("sm_{}", gpu.architecture),
        memory_bytes: gpu.memory_bytes,
    };
    let gpus = gpus().map(|gpus| gpus.iter().map(found).collect()).unwrap_or_default();
    let options = DriverOptions { libraries: libraries.map(Path::to_owned), cache: None };
    let unusable = match Driver::open(0, &options) {
        Ok(driver) => CudaBackend::new(Box::new(driver)).prove().err(),
        Err(reason) => Some(reason.to_string()),
    };
    Cuda { gpus, unusable }
}

/// Compiles every kernel for these architectures, `sm_90` for example; that needs no GPU.
///
/// # Errors
/// [`CompileError`], at the first kernel that does not compile.
pub fn compile(libraries: Option<&Path>, names: &[String]) -> Result<Vec<Compiled>, CompileError> {
    let architecture = |name: &String| {
        let number = name.strip_prefix("sm_").and_then(|number| number.parse().ok());
        number.ok_or_else(|| CompileError::Architecture(name.clone()))
    };
    let architectures: Vec<u32> = names.iter().map(architecture).collect::<Result<_, _>>()?;
    let compiler = Compiler::open(libraries)?;
    let all =
        architectures.iter().flat_map(|&to| Module::all(to).into_iter().map(move |m| (m, to)));
    in_parallel(&all.collect::<Vec<_>>(), |&(module, to)| one(compiler, module, to))
}

/// What `task` makes of every item, on every processor there is; items go one by one to whoever is
/// free.
fn in_parallel<T: Sync, R: Send, E: Send>(
    items: &[T],
    task: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..usable_cores() {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let made = task(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(made);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
}

fn one(compiler: Compiler, module: Module, architecture: u32) -> Result<Compiled, CompileError> {
    let (started, name) = (Instant::now(), format!("{module:?}"));
    let code = compiler.compile(module, architecture).map_err(|reason| CompileError::Kernel {
        module: name.clone(),
        architecture,
        reason,
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let architecture = format!("sm_{architecture}");
    Ok(Compiled { module: name, architecture, bytes: code.len(), seconds })
}
