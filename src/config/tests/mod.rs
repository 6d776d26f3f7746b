//! Tests of the floor as a whole, from text to configuration or problems. The environment is a function here.

mod any_text;
mod changes;
mod editor;
mod files;
mod certs;
mod rendered;
mod secrets;

use std::ffi::OsString;
use std::path::Path;

use super::load::parse_in;
use super::schema::SECTIONS;
use super::*;

const SOUND: &str = r#"
[[listener]]
address = "127.0.0.1:4321"
[[backend]]
name = "cli-1"
address = "cli-1:4321"
"#;

fn environment(name: &str) -> Option<OsString> {
    match name {
        "TOKEN" | "COPILOT_CONNECTION_TOKEN" => Some("s3cret".into()),
        "ADMIN_TOKEN" | "SESSILE_ADMIN_TOKEN" => Some("0123456789abcdef".into()),
        "SPACED" => Some("0123456789 abcdef".into()),
        "EMPTY" => Some(OsString::new()),
        _ => None,
    }
}

fn parsed(text: &str) -> Result<Config, Problems> {
    parse_in(text, "sessile.toml", Path::new("sessile.toml"), &environment)
}

/// [`SOUND`] with something more in it, which must be fine.
fn sound_with(more: &str) -> Config {
    parsed(&format!("{SOUND}{more}")).unwrap_or_else(|problems| panic!("{}", problems.render(false)))
}

/// [`SOUND`] with something more in it, which must not be.
fn messages_with(more: &str) -> Vec<String> {
    let problems = parsed(&format!("{SOUND}{more}")).expect_err(more);
    problems.iter().map(|problem| problem.message.clone()).collect()
}

fn rendered(text: &str) -> String {
    parsed(text).expect_err(text).render(false)
}
