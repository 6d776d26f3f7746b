//! `sessile check`.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;

use super::CONFIG;
use super::terminal::{Table, err, out, plain};
use crate::config::{self, AdminAddress, AdminState, Config};
use crate::control::{Trouble, warnings};

/// Loads a configuration. If it is not sound, prints every problem to standard error and returns the exit code.
pub(super) fn load(path: &Path) -> Result<Config, ExitCode> {
    config::load(path).map_err(|problems| {
        err(&problems.render(std::io::stderr().is_terminal()));
        ExitCode::from(CONFIG)
    })
}

/// Says that a file is sound, with a summary; or every problem.
pub(super) fn check(path: &Path, json: bool) -> ExitCode {
    if json {
        let loaded = config::load(path);
        let problems = loaded.as_ref().err().map(Trouble::of).unwrap_or_default();
        let warnings = loaded.as_ref().map(warnings).unwrap_or_default();
        let file = path.display().to_string();
        out(&format!(
            "{}\n",
            serde_json::json!({ "file": file, "ok": loaded.is_ok(), "problems": problems, "warnings": warnings })
        ));
        return loaded.map_or(ExitCode::from(CONFIG), |_| ExitCode::SUCCESS);
    }
    match load(path) {
        Ok(config) => {
            out(&format!("{} is sound\n{}", plain(&path.display().to_string()), summary(&config)));
            for warning in warnings(&config) {
                err(&format!("warning: {warning}\n"));
            }
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

fn summary(config: &Config) -> String {
    let Config { listeners, admin, placement, backends, .. } = config;
    let listeners: Vec<String> = listeners.iter().map(|listener| listener.address.to_string()).collect();
    let mut admin_line = match &admin.address {
        AdminAddress::Tcp(address) => address.to_string(),
        AdminAddress::Unix(path) => path.display().to_string(),
    };
    let locks = match (&admin.tls, &admin.token) {
        (None, None) => "",
        (None, Some(_)) => " with a token",
        (Some(tls), None) if tls.is_mutual() => " with TLS that demands certificates",
        (Some(tls), Some(_)) if tls.is_mutual() => " with TLS that demands certificates, and a token",
        (Some(_), None) => " with TLS",
        (Some(_), Some(_)) => " with TLS and a token",
    };
    admin_line.push_str(locks);
    if let Some(address) = admin.metrics_address {
        admin_line.push_str(&format!(", metrics on {address}"));
    }
    let (strategy, storage) = (placement.strategy.label(), placement.storage.label());
    let names = backends.iter().map(|backend| match backend.state {
        AdminState::Ready => backend.name.clone(),
        state => format!("{} ({})", backend.name, state.label()),
    });
    let names = names.collect::<Vec<_>>().join(", ");
    let mut table = Table::bare();
    for (what, value) in [
        ("listeners", listeners.join(", ")),
        ("admin", admin_line),
        ("placement", format!("{strategy}, storage {storage}, locate {}", placement.locate.label())),
        ("backends", format!("{}: {names}", backends.len())),
    ] {
        table.row([what.to_owned(), value]);
    }
    table.render("  ")
}
