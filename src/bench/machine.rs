//! Facts and limits of the machine, and which kernels follow from them.

use serde::Serialize;

use crate::kernels::cpu::Cpu;
use crate::kernels::peak::Peak;
use crate::kernels::pool::usable_cores;

/// What was found and measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's own name.
    pub processor: String,
    pub architecture: &'static str,
    /// Instruction sets our kernels use.
    pub instructions: Vec<&'static str>,
    /// Processors that are online; those this process may use, affinity and quota counted.
    pub processors: usize,
    pub threads: usize,
    /// Processors' worth of time the cgroup grants; `None`: no limit.
    pub cgroup_quota: Option<f64>,
    pub memory_bytes: Option<u64>,
    /// For one thread and for all.
    pub limits: Vec<Limits>,
}

/// Measured limits of so many threads, per second; `None` where the instruction is missing.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    pub threads: usize,
    pub read_bytes: f64,
    pub f32_operations: f64,
    pub bf16_operations: Option<f64>,
    pub int8_operations: Option<f64>,
}

/// The kernel behind one kind of weight, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    pub weights: &'static str,
    pub kernel: &'static str,
    pub reason: &'static str,
}

impl Machine {
    /// Asks the system, and measures for `threads` threads (0: as many as may be used).
    pub fn measure(threads: usize) -> Self {
        let threads = if threads == 0 { usable_cores() } else { threads };
        let cpu = Cpu::detect();
        let counts = if threads == 1 { vec![1] } else { vec![1, threads] };
        Self {
            processor: first_value("/proc/cpuinfo", "model name").unwrap_or("unknown".into()),
            architecture: std::env::consts::ARCH,
            instructions: cpu.names(),
            processors: online_processors().unwrap_or(threads),
            threads,
            cgroup_quota: cgroup_quota(),
            memory_bytes: memory_bytes(),
            limits: counts.into_iter().map(|threads| limits(cpu, threads)).collect(),
        }
    }

    /// The limits of all threads together.
    pub fn best(&self) -> Limits {
        self.limits[self.limits.len() - 1]
    }
}

fn limits(cpu: Cpu, threads: usize) -> Limits {
    let peak = Peak::measure(cpu, threads);
    Limits {
        threads,
        read_bytes: peak.read,
        f32_operations: peak.f32,
        bf16_operations: peak.bf16,
        int8_operations: peak.int8,
    }
}

/// Which kernel multiplies each kind of weight on this machine.
pub fn choices() -> [Choice; 4] {
    let cpu = Cpu::detect();
    let widest = match cpu.names().as_slice() {
        names if names.contains(&"avx512f") => ("16 × f32 (AVX-512)", "AVX-512 F was detected"),
        names if names.contains(&"avx2") => ("8 × f32 (AVX2, FMA)", "AVX2 and FMA were detected"),
        _ => ("plain loops", "neither AVX2 nor AVX-512 was detected"),
    };
    let integer = match cpu.names().as_slice() {
        names if names.contains(&"amx") => {
            ("vpdpbusd, tdpbssd tiles", "AVX-512 VNNI and AMX were detected")
        }
        names if names.contains(&"avx512vnni") => {
            ("vpdpbusd, 16 rows", "AVX-512 VNNI was detected")
        }
        names if names.contains(&"avx2") => ("vpmaddubsw, 8 rows", "AVX2, but no AVX-512 VNNI"),
        _ => ("plain loops", "neither AVX2 nor AVX-512 VNNI was detected"),
    };
    let pairs = match cpu.names().as_slice() {
        names if names.contains(&"amx") => ("tdpbf16ps, 32 × 32 tiles", "AMX was detected"),
        names if names.contains(&"avx512bf16") => {
            ("vdpbf16ps, 12 × 32 tile", "AVX-512 BF16 was detected")
        }
        _ => (widest.0, "no AVX-512 BF16: weights are widened to f32 on the way"),
    };
    let choice = |weights, (kernel, reason)| Choice { weights, kernel, reason };
    [
        choice("4 and 8 bits", integer),
        choice("bf16", pairs),
        choice("nf4", pairs),
        choice("f32", widest),
    ]
}

/// Resident memory of this process in bytes, now and at its peak.
pub fn resident_bytes() -> Option<(u64, u64)> {
    let kib = |key| first_value("/proc/self/status", key)?.split(' ').next()?.parse::<u64>().ok();
    Some((kib("VmRSS")? << 10, kib("VmHWM")? << 10))
}

/// The value behind `key` in a file of `key: value` lines.
fn first_value(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_bytes() -> Option<u64> {
    let text = first_value("/proc/meminfo", "MemTotal")?;
    Some(text.split(' ').next()?.parse::<u64>().ok()? << 10)
}

fn online_processors() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    Some(text.lines().filter(|line| line.starts_with("processor")).count()).filter(|&n| n > 0)
}

/// `cpu.max` of cgroup v2, else the quota and period of v1.
fn cgroup_quota() -> Option<f64> {
    let read = |path| std::fs::read_to_string(path).ok();
    let (quota, period) = match read("/sys/fs/cgroup/cpu.max") {
        Some(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.to_owned(), period.to_owned())
        }
        None => (
            read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")?,
            read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")?,
        ),
    };
    let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
    (quota > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_weight_has_a_kernel_and_a_reason() {
        for choice in choices() {
            assert!(!choice.kernel.is_empty() && !choice.reason.is_empty(), "{choice:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_knows_its_own_memory() {
        let (now, peak) = resident_bytes().expect("/proc is there");
        assert!(now > 0 && now <= peak);
    }
}
