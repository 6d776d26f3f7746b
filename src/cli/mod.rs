//! The command line: the commands of `sessile`.

mod terminal;
mod check;
mod run;
mod sealed;
mod client;
mod shown;
mod remote;
mod leave;
mod route;
mod manual;
mod demo;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use client::{Admin, AdminClient};

use crate::config::{self, AdminState};

/// A layer-4 session-affinity load balancer for fleets of JSON-RPC CLI servers.
#[derive(Debug, Parser)]
#[command(name = "sessile", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0, 64 wrong usage, 75 sessions are left after --timeout, 78 the configuration is not sound, 1 anything else, such as a balancer that is not ready (status)."
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the balancer until a signal ends it
    ///
    /// SESSILE_LOG sets how much is logged: error, warn, info (the default), debug, trace or off. It can be set for
    /// parts, as in SESSILE_LOG=warn,sessile::access=info. Why it cannot start is always printed.
    Run(File),
    /// Say whether a configuration file is sound, or everything that is wrong with it
    Check {
        #[command(flatten)]
        file: File,
        /// Print the verdict as JSON, with every problem
        #[arg(long)]
        json: bool,
    },
    /// Say where sessions would go, and why: a line for each ID, with the backend and the reason
    ///
    /// Asks the running balancer, which knows what is live, what is stored and what is down. With --offline the answer
    /// comes from the file alone: where new sessions go while every backend is up. The output says which of the two it
    /// was. The balancer answers for a session.resume; a session.create of a name that nobody has may go elsewhere
    /// while a server is down.
    Route {
        /// The admin socket: http://HOST:PORT, https://HOST:PORT or unix:/PATH
        #[arg(long, value_name = "URL", env = "SESSILE_ADMIN", default_value = client::DEFAULT)]
        admin: Admin,
        #[command(flatten)]
        credentials: Credentials,
        /// Do not ask the balancer: answer from the file of --config
        #[arg(long, requires = "config")]
        offline: bool,
        /// The configuration file, for --offline
        #[arg(long, value_name = "FILE", env = "SESSILE_CONFIG")]
        config: Option<PathBuf>,
        /// Print a list of objects, one for each ID
        #[arg(long)]
        json: bool,
        /// Session IDs
        #[arg(required = true, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        ids: Vec<String>,
    },
    /// Show what the running balancer does: listeners, backends, sessions; exit 1 if it is not ready
    Status(Remote),
    /// Make the running balancer read its file again
    Reload(Remote),
    /// Send nothing new to a backend; the sessions it has stay
    Drain(Leave),
    /// Let a backend take new sessions (again)
    Ready(Told),
    /// Take a backend out of use, except for sessions that are live there
    Maint(Leave),
    /// Try it: three servers, a balancer in front, and sessions that stay where they belong
    ///
    /// Needs no setup. Real servers are used if `copilot` or `copilot-runtime` is in PATH, without an account and without
    /// the network; else built-in fake servers.
    Demo {
        /// The CLI server to start, instead of what is in PATH
        #[arg(long, value_name = "PATH")]
        cli: Option<PathBuf>,
        /// End after the sample sessions; exit 1 if one of them is in the wrong place
        #[arg(long)]
        once: bool,
    },
    /// Print a completion script, such as for `source <(sessile completions bash)`
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the JSON Schema of the configuration file, for editors that complete and check TOML
    Schema,
    /// Print the manual page, such as for `sessile man | man -l -`
    Man,
}

#[derive(Debug, Args)]
struct File {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "SESSILE_CONFIG")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Remote {
    /// The admin socket: http://HOST:PORT, https://HOST:PORT or unix:/PATH
    #[arg(long, value_name = "URL", env = "SESSILE_ADMIN", default_value = client::DEFAULT)]
    admin: Admin,
    #[command(flatten)]
    credentials: Credentials,
    /// Print the answer as JSON, errors included
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Credentials {
    /// The file that holds the admin token, if the balancer demands one; else SESSILE_ADMIN_TOKEN is the token itself
    #[arg(long, value_name = "FILE", env = "SESSILE_ADMIN_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// The CA that must have signed the balancer's certificate, as PEM: for https://
    #[arg(long, value_name = "FILE", env = "SESSILE_ADMIN_CA")]
    ca: Option<PathBuf>,
    /// The certificate to show, as PEM, if the balancer demands one
    #[arg(long, value_name = "FILE", env = "SESSILE_ADMIN_CERT", requires_all = ["key", "ca"])]
    cert: Option<PathBuf>,
    /// Its private key, as PEM, without a passphrase
    #[arg(long, value_name = "FILE", env = "SESSILE_ADMIN_KEY", requires = "cert")]
    key: Option<PathBuf>,
    /// The name that the balancer's certificate must have, if not the host in --admin
    #[arg(id = "peer", long = "name", value_name = "NAME", env = "SESSILE_ADMIN_NAME", requires = "ca")]
    peer: Option<String>,
}

#[derive(Debug, Args)]
struct Told {
    /// The backend, by its name in the configuration
    name: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Leave {
    #[command(flatten)]
    told: Told,
    /// Return when the last session has left it; prints what is still there meanwhile
    #[arg(long)]
    wait: bool,
    /// How long to wait, such as 10m; exit 75 if there are sessions left then
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

/// Exit codes, beside 0 and 1.
const USAGE: u8 = 64;
const CONFIG: u8 = 78;
const WAITED: u8 = 75;

/// Runs the command line.
pub fn main() -> ExitCode {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => {
            // If the text cannot be written, neither can an error.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let tell = |Told { name, remote }: Told, state| {
        at(remote, |admin_client, json| remote::tell(admin_client, json, &name, state))
    };
    let leave = |Leave { told, wait, timeout }: Leave, state| match wait {
        true => {
            at(told.remote, |admin_client, json| leave::leave(admin_client, json, &told.name, state, timeout))
        }
        false => tell(told, state),
    };
    match line.command {
        Command::Run(File { config }) => run::run(&config),
        Command::Check { file: File { config }, json } => check::check(&config, json),
        Command::Route { offline: true, config, json, ids, .. } => {
            route::offline(&config.unwrap_or_default(), json, &ids)
        }
        Command::Route { admin, credentials, json, ids, .. } => {
            at(Remote { admin, credentials, json }, |admin_client, json| {
                route::online(admin_client, json, &ids)
            })
        }
        Command::Status(remote) => at(remote, remote::status),
        Command::Reload(remote) => at(remote, remote::reload),
        Command::Drain(told) => leave(told, AdminState::Drain),
        Command::Ready(told) => tell(told, AdminState::Ready),
        Command::Maint(told) => leave(told, AdminState::Maint),
        Command::Demo { cli, once } => demo::demo(cli, once),
        Command::Completions { shell } => print(&manual::completions(shell, CommandLine::command())),
        Command::Schema => print(format!("{:#}\n", config::json_schema()).as_bytes()),
        Command::Man => match manual::man(CommandLine::command()) {
            Ok(page) => print(&page),
            Err(_) => ExitCode::FAILURE,
        },
    }
}

/// Does something at an admin socket, with its credentials.
fn at(
    Remote { admin, credentials, json }: Remote,
    act: impl FnOnce(&AdminClient, bool) -> ExitCode,
) -> ExitCode {
    let misused = match (&admin, &credentials.ca) {
        (Admin::Tls(_), None) => "https:// needs --ca: the CA that signed the balancer's certificate".into(),
        // A user who names a CA does not want a token to be sent in the clear.
        (Admin::Tcp(authority), Some(_)) => format!("--ca is for TLS: write --admin https://{authority}"),
        _ => String::new(),
    };
    if !misused.is_empty() {
        // Like clap's message, without the usage: the command is not known here.
        terminal::err(&format!("error: {misused}\n\nFor more information, try '--help'.\n"));
        return ExitCode::from(USAGE);
    }
    match AdminClient::new(admin, &credentials) {
        Ok(admin_client) => act(&admin_client, json),
        Err(why) => {
            terminal::err(&format!("sessile: {why}\n"));
            ExitCode::FAILURE
        }
    }
}

fn print(text: &[u8]) -> ExitCode {
    terminal::out(&String::from_utf8_lossy(text));
    ExitCode::SUCCESS
}
