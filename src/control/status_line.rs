//! The state of the process in one line, as `systemctl status` shows it.

use crate::balancer::Balancer;

/// The line; `problems` are those of the last file, if it was refused.
pub fn status_line(balancer: &Balancer, problems: usize) -> String {
    let snapshot = balancer.now();
    let connections = count(balancer.tasks.len(), "connection");
    if balancer.draining.is_cancelled() {
        return format!("draining: {connections} left");
    }
    let all = snapshot.members.len();
    let up = snapshot.members.iter().filter(|member| member.backend.is_up()).count();
    let fleet = match up {
        0 => format!("NO backend is up (of {all})"),
        _ if snapshot.is_panic() => format!("PANIC: only {up} of {all} backends up"),
        _ => format!("{up} of {all} backends up"),
    };
    let sessions = count(balancer.directory.len(), "session");
    let refused = match problems {
        0 => String::new(),
        _ => format!("; the last file was refused ({}): see `sessile status`", count(problems, "problem")),
    };
    format!("{fleet}, {connections}, {sessions}, generation {}{refused}", snapshot.generation)
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}
