//! Where the server computes: the GPU that was asked for, the first that can be used, or the CPU.

use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::driver::{Driver, DriverOptions, Unusable};
use crate::config::{Config, Device};
use crate::worker::{self, BaseSource, StartError, Worker, WorkerHandle, WorkerSettings};

/// A device that was found fit.
pub(super) enum Chosen {
    Cpu { threads: usize },
    Gpu(Box<CudaBackend>),
}

/// The device the configuration asks for.
///
/// # Errors
/// Why the GPU that was named cannot be used.
pub(super) fn choose(config: &Config) -> Result<Chosen, Unusable> {
    let cpu = Chosen::Cpu { threads: config.threads };
    let cache = Some(config.data.join("cuda"));
    let options = DriverOptions { libraries: config.cuda_libraries.clone(), cache };
    match config.device {
        Device::Cpu => Ok(cpu),
        Device::Cuda(ordinal) => gpu(ordinal, &options),
        Device::Auto => Ok(gpu(0, &options).unwrap_or_else(|reason| {
            tracing::info!(%reason, "computing on the CPU");
            cpu
        })),
    }
}

/// A GPU that was found to compute what it should.
fn gpu(ordinal: usize, options: &DriverOptions) -> Result<Chosen, Unusable> {
    let driver = Driver::open(ordinal, options)?;
    let name = driver.gpu.name.clone();
    let mut backend = CudaBackend::new(Box::new(driver));
    if let Err(reason) = backend.prove() {
        return Err(Unusable::Trial { name, reason });
    }
    tracing::info!(%name, "computing on cuda:{ordinal}");
    Ok(Chosen::Gpu(Box::new(backend)))
}

impl Chosen {
    /// Loads the base models there and starts the device thread.
    ///
    /// # Errors
    /// As [`worker::start`].
    pub fn start(
        self,
        bases: Vec<BaseSource>,
        settings: WorkerSettings,
    ) -> Result<(WorkerHandle, Worker), StartError> {
        match self {
            Self::Cpu { threads } => {
                worker::start(move || CpuBackend::new(threads), bases, settings)
            }
            Self::Gpu(backend) => worker::start(move || *backend, bases, settings),
        }
    }
}
