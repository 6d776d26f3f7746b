//! The `sessile` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    sessile::cli::main()
}
