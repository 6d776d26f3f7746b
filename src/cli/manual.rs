//! `sessile man` and `sessile completions`: one page with every command on it, and completion scripts.

use std::io;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

const AFTER: &str = r#".SH FILES
The configuration is TOML; conf/example.toml explains every key. It is read again whenever it changes, on SIGHUP and on
\fBsessile reload\fR; a file with a mistake in it changes nothing, and connections outlive every reload.
.SH SIGNALS
.TP
SIGHUP
reload the configuration
.TP
SIGTERM, SIGINT
drain: accept nothing more and wait for open connections, at most timeouts.drain; a second one ends them at once
.TP
SIGUSR2
upgrade: start the binary that is now at the path of this one as the next process; this one keeps its connections
.SH ENVIRONMENT
.TP
SESSILE_CONFIG
the configuration file, instead of \-\-config
.TP
SESSILE_ADMIN
the admin socket, instead of \-\-admin
.TP
SESSILE_ADMIN_TOKEN_FILE, SESSILE_ADMIN_TOKEN
the file with the admin token, instead of \-\-token\-file, or the token itself
.TP
SESSILE_ADMIN_CA, SESSILE_ADMIN_CERT, SESSILE_ADMIN_KEY, SESSILE_ADMIN_NAME
for https://, instead of \-\-ca, \-\-cert, \-\-key and \-\-name
.TP
SESSILE_LOG
how much is logged: error, warn, info (the default), debug, trace or off; also for parts, as in
\(dqwarn,sessile::proxy=debug\(dq or, for the access log and warnings, \(dqwarn,sessile::access=info\(dq; with anything else
\fBsessile run\fR says what is wrong with it and ends
.SH "EXIT STATUS"
.TP
0
success
.TP
64
wrong usage
.TP
75
sessions are left after \-\-timeout
.TP
78
the configuration is not sound
.TP
1
any other failure; of \fBsessile status\fR also: the balancer is not ready
"#;

/// The manual page, in roff.
///
/// # Errors
/// Never: it writes to memory.
pub(super) fn man(mut command: Command) -> io::Result<Vec<u8>> {
    // `--help` is explained once, not for every command.
    command = command.disable_help_subcommand(true).mut_subcommands(|sub| sub.disable_help_flag(true));
    command.build();
    let mut page = Vec::new();
    let whole = Man::new(command.clone());
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    whole.render_description_section(&mut page)?;
    page.extend_from_slice(b".SH COMMANDS\n");
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let mut part = Vec::new();
        let name = sub.get_bin_name().unwrap_or_else(|| sub.get_name()).to_owned();
        let man = Man::new(sub.clone());
        man.render_synopsis_section(&mut part)?;
        man.render_description_section(&mut part)?;
        man.render_options_section(&mut part)?;
        page.extend_from_slice(format!(".SS \"{name}\"\n").as_bytes());
        page.extend_from_slice(flat(&String::from_utf8_lossy(&part)).as_bytes());
    }
    page.extend_from_slice(AFTER.as_bytes());
    Ok(page)
}

/// The sections of one command as paragraphs under its heading.
fn flat(part: &str) -> String {
    let mut out = String::new();
    for line in part.lines() {
        match line.strip_prefix(".SH ") {
            Some("OPTIONS") => out.push_str(".RS 4"),
            Some(_) => out.push_str(".PP"),
            None => out.push_str(line),
        }
        out.push('\n');
    }
    if part.lines().any(|line| line == ".SH OPTIONS") {
        out.push_str(".RE\n");
    }
    out
}

/// The completion script for `shell`.
pub(super) fn completions(shell: Shell, mut command: Command) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "sessile", &mut script);
    script
}
