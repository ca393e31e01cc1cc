//! How much memory this process takes, and may still take.
#![allow(unsafe_code)]

use std::fs;
use std::path::Path;

/// Bytes that may be allocated before the system runs short: what the kernel reports as available,
/// or what the control group of the process has left if that is less. `None` where neither is known.
pub fn available_bytes() -> Option<usize> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text));
    match (machine, group_bytes(Path::new("/sys/fs/cgroup"))) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

/// Bytes of this process that lie in memory now. `None` where that is not known.
pub fn resident_bytes() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    kilobytes(&status, "VmRSS:")
}

/// Gives freed memory back to the system that the allocator keeps for what may come.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes no pointer, and touches freed memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// `MemAvailable` of `/proc/meminfo`.
fn meminfo(text: &str) -> Option<usize> {
    kilobytes(text, "MemAvailable:")
}

/// The bytes that a line `name 123 kB` tells of.
fn kilobytes(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok()? << 10)
}

/// `memory.max` less `memory.current` of a version 2 control group; no limit there reads `max`.
fn group_bytes(folder: &Path) -> Option<usize> {
    let number = |file: &str| -> Option<usize> {
        fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
    };
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_words_are_understood() {
        let text = "MemTotal:       24683948 kB\nMemAvailable:   22735872 kB\n";
        assert_eq!(meminfo(text), Some(22_735_872 << 10));
        assert_eq!(meminfo("MemTotal: 1 kB"), None);
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(group_bytes(folder.path()), None);
        fs::write(folder.path().join("memory.current"), "300\n").expect("written");
        fs::write(folder.path().join("memory.max"), "max\n").expect("written");
        assert_eq!(group_bytes(folder.path()), None);
        fs::write(folder.path().join("memory.max"), "1000\n").expect("written");
        assert_eq!(group_bytes(folder.path()), Some(700));
    }
}
