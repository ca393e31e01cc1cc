//! How much memory this process may still take.

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

/// `MemAvailable` of `/proc/meminfo`.
fn meminfo(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
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
