//! Figures as text.

use std::fmt::Write;

use super::cuda::{Compiled, Cuda};
use super::load::{LoadReport, Spread};
use super::machine::{Choice, Limits, Machine};
use super::offline::{RANK, Report};

/// Below this share of a step a stage is not printed.
const SMALLEST_SHARE: f64 = 0.01;

fn giga(value: f64) -> String {
    format!("{:.0}", value / 1e9)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Device, threads, limits and the kernels that follow.
pub fn machine(machine: &Machine, choices: &[Choice]) -> String {
    let mut out = String::new();
    let quota = machine.cgroup_quota.map_or("none".to_owned(), |quota| format!("{quota:.2}"));
    let memory = machine.memory_bytes.map_or("unknown".to_owned(), mib);
    let instructions = match machine.instructions.as_slice() {
        [] => "none that our kernels use".to_owned(),
        names => names.join(", "),
    };
    let _ = writeln!(out, "device        CPU, {} ({})", machine.processor, machine.architecture);
    let _ = writeln!(out, "instructions  {instructions}");
    let _ = writeln!(
        out,
        "threads       {} of {} processors (affinity and quota counted; cgroup quota: {quota})",
        machine.threads, machine.processors
    );
    let _ = writeln!(out, "memory        {memory}\n");
    out += &limits(&machine.limits);
    let _ = writeln!(out, "\n{:<14}{:<26}because", "weights", "kernel");
    for choice in choices {
        let _ = writeln!(out, "{:<14}{:<26}{}", choice.weights, choice.kernel, choice.reason);
    }
    out
}

/// GPUs, and which device `--device auto` takes.
pub fn cuda(cuda: &Cuda) -> String {
    let mut out = String::new();
    for (number, gpu) in cuda.gpus.iter().enumerate() {
        let (name, architecture) = (&gpu.name, &gpu.architecture);
        let memory = mib(gpu.memory_bytes as u64);
        let _ = writeln!(out, "cuda:{number:<9}{name}, {architecture}, {memory}");
    }
    let _ = match &cuda.unusable {
        Some(reason) => writeln!(out, "auto          CPU, since {reason}"),
        None => writeln!(out, "auto          cuda:0"),
    };
    out += "GPU kernels   sm_75 and newer; checked on an emulator, not yet run on a GPU\n";
    out
}

/// Kernels that were compiled.
pub fn compiled(modules: &[Compiled]) -> String {
    let mut out = String::new();
    for Compiled { module, architecture, bytes, seconds } in modules {
        let _ = writeln!(out, "{architecture:<10}{module:<26}{bytes:>8} bytes {seconds:>6.2} s");
    }
    out
}

fn limits(limits: &[Limits]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<14}{:>12}{:>14}{:>14}{:>14}",
        "measured", "read GB/s", "int8 Gop/s", "bf16 Gop/s", "f32 Gop/s"
    );
    for limit in limits {
        let optional = |value: Option<f64>| value.map_or("-".to_owned(), giga);
        let _ = writeln!(
            out,
            "{:<14}{:>12.1}{:>14}{:>14}{:>14}",
            format!("{} thread{}", limit.threads, if limit.threads == 1 { "" } else { "s" }),
            limit.read_bytes / 1e9,
            optional(limit.int8_operations),
            optional(limit.bf16_operations),
            giga(limit.f32_operations)
        );
    }
    out
}

/// What one model reached.
pub fn offline(report: &Report, with_stages: bool) -> String {
    let mut out = String::new();
    let resident = report.resident_bytes.map_or("unknown".to_owned(), |(now, peak)| {
        format!("{} (peak while loading {})", mib(now), mib(peak))
    });
    let _ = writeln!(
        out,
        "model         {}, {} ({:.0} M parameters, {} of weights)\nloaded in     {:.2} s\nresident      {resident}\n",
        report.model,
        report.format,
        report.parameters as f64 / 1e6,
        mib(report.weight_bytes),
        report.load_seconds
    );
    out += &limits(&report.machine.limits);
    let _ = writeln!(
        out,
        "\n{:<10}{:>6}{:>22}{:>12}{:>12}{:>10}{:>8}",
        "step", "rows", "adapters", "tokens/s", "ms", "of limit", "steps"
    );
    for speed in &report.speeds {
        let adapters = match speed.adapters {
            0 => "none".to_owned(),
            count => format!("{count} of rank {RANK}"),
        };
        let _ = writeln!(
            out,
            "{:<10}{:>6}{adapters:>22}{:>12.1}{:>12.2}{:>9.0}%{:>8}",
            speed.what,
            speed.rows,
            speed.tokens_per_second,
            speed.step_seconds * 1e3,
            speed.of_limit * 100.0,
            speed.steps
        );
    }
    if with_stages {
        out += &stages(report);
    }
    out
}

fn stages(report: &Report) -> String {
    let mut out = String::new();
    let mut case = "";
    for stage in report.stages.iter().filter(|stage| stage.share >= SMALLEST_SHARE) {
        if stage.case != case {
            case = &stage.case;
            let _ = writeln!(
                out,
                "\n{case:<34}{:>7}{:>10}{:>8}{:>8}{:>8}",
                "calls", "ms", "share", "GB/s", "Gop/s"
            );
        }
        let _ = writeln!(
            out,
            "  {:<32}{:>7}{:>10.2}{:>7.0}%{:>8.1}{:>8.0}",
            stage.stage,
            stage.calls,
            stage.seconds * 1e3,
            stage.share * 100.0,
            stage.bytes_per_second / 1e9,
            stage.operations_per_second / 1e9
        );
    }
    out
}

/// What a server delivered.
pub fn load(report: &LoadReport) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} requests, {} failed, {:.1} s, {} tokens: {:.1} tokens/s",
        report.requests,
        report.failed,
        report.seconds,
        report.output_tokens,
        report.output_tokens_per_second
    );
    if let Some(error) = &report.first_error {
        let _ = writeln!(out, "first error   {error}");
    }
    let _ = writeln!(out, "\n{:<16}{:>9}{:>9}{:>9}{:>9}", "ms", "p50", "p90", "p99", "max");
    let rows = [
        ("first token", report.first_token_ms),
        ("between tokens", report.inter_token_ms),
        ("whole answer", report.request_ms),
    ];
    for (name, spread) in rows {
        let Spread { p50, p90, p99, max } = spread;
        let _ = writeln!(out, "{name:<16}{p50:>9.1}{p90:>9.1}{p99:>9.1}{max:>9.1}");
    }
    out
}
