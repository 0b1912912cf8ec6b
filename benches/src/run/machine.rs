//! The machine of the run.

use std::fs;

use crate::report::Report;

/// Adds the facts that decide whether figures of two runs can be compared.
pub(super) fn describe(report: &mut Report) {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into());
    report.fact("processor", format!("{processor}, {cores} cores"));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    report.fact("kernel", kernel.trim());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    report.fact("load before the run", load.split(' ').take(3).collect::<Vec<_>>().join(" "));
}

/// The first value of `name` in a file of `name: value` lines.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
