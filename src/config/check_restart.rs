//! `health.restart_*`: the command, word by word, and its limits.

use std::cell::Cell;
use std::time::Duration;

use super::model::{Restart, RestartCommand};
use super::problem::ValueFault;
use super::raw::Reader;
use super::restart::{Unknown, fill, is_program};
use super::schema::shown;
use super::values::{SHORTEST, UP_TO_AN_HOUR};

const WORDS_MAX: usize = 64;
const WORD_BYTES_MAX: usize = 4096;
const UP_TO_A_DAY: std::ops::RangeInclusive<Duration> = SHORTEST..=Duration::from_hours(24);

pub(super) fn restart(reader: &mut Reader<'_, '_>) -> Restart {
    let default = Restart::default();
    Restart {
        command: command(reader),
        after: reader.bounded("restart_after", default.after, &UP_TO_AN_HOUR),
        interval: reader.bounded("restart_interval", default.interval, &UP_TO_A_DAY),
        timeout: reader.bounded("restart_timeout", default.timeout, &UP_TO_AN_HOUR),
    }
}

fn command(reader: &mut Reader<'_, '_>) -> Option<RestartCommand> {
    const KEY: &str = "restart_command";
    let mark = reader.mark();
    let is_first = Cell::new(true);
    let words =
        reader.list(KEY, WORDS_MAX, |text| if is_first.take() { program(text) } else { argument(text) })?;
    let command = RestartCommand::new(words);
    if command.is_none() && reader.clean_since(mark) {
        let fault = ValueFault::new("must name a program, not be empty");
        reader.report(KEY, fault.help("leave the key out, and nothing is restarted"));
    }
    command
}

fn program(text: &str) -> Result<String, ValueFault> {
    if is_program(text) {
        return short(text);
    }
    let fault = ValueFault::new(format!("must begin with a program, not \"{}\"", shown(text)));
    Err(fault.help("write its name, or its path from the root: no placeholder decides what is run"))
}

fn argument(text: &str) -> Result<String, ValueFault> {
    fill(text, "", "").map_err(|Unknown(mark)| {
        let fault =
            ValueFault::new(format!("has a placeholder that nothing stands for: \"{}\"", shown(mark)));
        fault.help(
            "placeholders are \"{name}\" and \"{address}\" of the backend; a brace itself is written twice",
        )
    })?;
    short(text)
}

fn short(text: &str) -> Result<String, ValueFault> {
    if text.len() <= WORD_BYTES_MAX && !text.contains('\0') {
        return Ok(text.to_owned());
    }
    Err(ValueFault::new(format!("must have words of at most {WORD_BYTES_MAX} bytes without NUL")))
}
