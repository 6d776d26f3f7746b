//! The command line: what `sessile` can be told to do.

mod logs;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A layer-4 session-affinity load balancer for fleets of JSON-RPC CLI servers.
#[derive(Debug, Parser)]
#[command(name = "sessile", version, max_term_width = 100)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the balancer until a signal ends it
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE", env = "SESSILE_CONFIG")]
        config: PathBuf,
    },
}

/// Exit codes, beside 0 and 1.
const USAGE: u8 = 64;
const CONFIG: u8 = 78;

/// Runs the command line.
pub fn main() -> ExitCode {
    let line = match Line::try_parse() {
        Ok(line) => line,
        Err(error) => {
            // Where the text cannot be written, there is nobody to tell.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    match line.command {
        Command::Run { config } => run::run(&config),
    }
}
