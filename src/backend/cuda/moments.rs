//! AdamW, over moments on the device or in the host's memory.

use super::source::Module;
use super::{CudaBackend, CudaRows, float};
use crate::backend::{AdamStep, HostMoments};
use crate::kernels::cpu::Cpu;
use crate::kernels::optimiser::{self, Adam};

/// Values of one partial sum: `SQUARES_RUN` in `rows.cu`.
const SQUARES_RUN: usize = 4096;

impl CudaBackend {
    /// See [`Backend::adamw`](crate::backend::Backend::adamw).
    pub(super) fn step(&self, p: &CudaRows, g: &CudaRows, [m, v]: [&CudaRows; 2], step: &AdamStep) {
        assert!(p.len() == g.len() && m.len() == g.len() && v.len() == g.len());
        let Adam { decay, beta2, rest1, rest2, rate, correction, epsilon } = step.factors();
        let numbers = [decay, beta2, rest1, rest2, rate, correction, epsilon].map(float);
        let matrices = [p.at(), g.at(), m.at(), v.at(), p.len() as u64];
        self.each(Module::Rows, "adamw", p.len(), &[&matrices[..], &numbers].concat());
    }

    /// See [`Backend::adamw_on_host`](crate::backend::Backend::adamw_on_host): moments that lie with
    /// the host are moved there, and only parameters and gradients travel.
    pub(super) fn step_on_host(
        &self,
        p: &CudaRows,
        g: &CudaRows,
        moments: HostMoments<'_>,
        step: &AdamStep,
    ) {
        let (mut values, gradients) = (self.values(p), self.values(g));
        assert_eq!(values.len(), gradients.len(), "a gradient has the size of its parameter");
        let (cpu, adam) = (Cpu::detect(), step.factors());
        match moments {
            HostMoments::F32 { first, second } => {
                optimiser::adamw(cpu, adam, &mut values, &gradients, first, second);
            }
            HostMoments::Bits8(state) => {
                optimiser::adamw8(cpu, adam, &mut values, &gradients, state);
            }
        }
        self.put(p, &values);
    }

    /// See [`Backend::sum_of_squares`](crate::backend::Backend::sum_of_squares).
    pub(super) fn squares(&self, x: &CudaRows) -> f64 {
        let runs = x.len().div_ceil(SQUARES_RUN);
        let sums = self.memory(runs * size_of::<f64>());
        let args = [x.at(), x.len() as u64, sums.at];
        self.launch(Module::Rows, "sum_of_squares", [runs, 1], &args);
        let mut values = vec![0f64; runs];
        super::done(self.machine.read(sums.at, bytemuck::cast_slice_mut(&mut values)));
        values.iter().sum()
    }
}
