//! The open files and the memory that the system allows this process.

use std::path::Path;

/// Raises the soft limit of open files to the hard one. Returns how many files may be open; `None` means
/// any number.
#[cfg(unix)]
pub(crate) fn allow_open_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            current
        }
    }
}

/// Other systems have no such limit.
#[cfg(not(unix))]
pub(crate) const fn allow_open_files() -> Option<u64> {
    None
}

/// The memory that this process may use, in bytes: that of the machine, or of its control group if that is
/// less; `None` if it is unknown.
pub(crate) fn memory() -> Option<u64> {
    memory_under(Path::new("/"))
}

/// As [`memory`], for a system whose files are below `root`.
fn memory_under(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let machine = read("proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let groups = read("proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let (folder, file) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            return Vec::new();
        };
        // A group is also bounded by the groups above it.
        let groups = Path::new(group).ancestors();
        let limit = |group: &Path| {
            let group = group.to_str()?.trim_matches('/');
            read(&format!("{folder}/{group}/{file}"))?.trim().parse::<u64>().ok()
        };
        groups.filter_map(limit).collect()
    });
    machine.into_iter().chain(limits).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_least_of_the_machine_and_of_the_groups_of_the_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        };
        assert_eq!(memory_under(folder.path()), None);
        write("proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n");
        assert_eq!(memory_under(folder.path()), Some(16 << 20));
        write("proc/self/cgroup", "0::/system.slice/tgm.service\n");
        write("sys/fs/cgroup/system.slice/tgm.service/memory.max", "max\n");
        assert_eq!(memory_under(folder.path()), Some(16 << 20));
        write("sys/fs/cgroup/system.slice/memory.max", "4194304\n");
        assert_eq!(memory_under(folder.path()), Some(4 << 20));
        write("proc/self/cgroup", "5:cpu:/\n4:hugetlb,memory:/docker/1\n");
        assert_eq!(memory_under(folder.path()), Some(16 << 20));
        write("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "1048576\n");
        assert_eq!(memory_under(folder.path()), Some(1 << 20));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_reports_its_memory() {
        assert!(memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
