//! The command that restarts a backend which stays down: what the file may say, and the command for a given backend.
//!
//! Part of `model`, whose guarantees hold here too. No shell reads the command, and no backend chooses what is run:
//! names may come from DNS, so the program has no placeholder, and a name or address that replaces one is neither an
//! option nor a path.

use std::time::Duration;

/// When and how backends are restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// `None`: not at all.
    pub command: Option<RestartCommand>,
    /// A backend must have been down for so long.
    pub after: Duration,
    /// From one restart of a backend to its next; longer each time while it stays down.
    pub interval: Duration,
    /// A command that takes longer is killed.
    pub timeout: Duration,
}

/// A program and its arguments, with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartCommand {
    program: String,
    arguments: Vec<String>,
}

/// Text in braces that is not a placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unknown<'t>(pub(super) &'t str);

impl RestartCommand {
    /// `words` must have been checked one by one: the first with [`is_program`], the others with [`fill`].
    pub(super) fn new(words: Vec<String>) -> Option<Self> {
        let mut words = words.into_iter();
        words.next().map(|program| Self { program, arguments: words.collect() })
    }

    /// What is run.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The arguments for one backend; `None` if its name or its address must not be put into a command.
    pub fn arguments(&self, name: &str, address: &str) -> Option<Vec<String>> {
        if !is_plain(name) || !is_plain(address) {
            return None;
        }
        self.arguments.iter().map(|argument| fill(argument, name, address).ok()).collect()
    }

    /// As the file has it.
    pub(super) fn show(&self) -> String {
        let words: Vec<&String> = std::iter::once(&self.program).chain(&self.arguments).collect();
        format!("{words:?}")
    }
}

/// Whether `text` names a program: by its name alone, or from the root.
pub(super) fn is_program(text: &str) -> bool {
    let is_path = text.starts_with('/') && !text.ends_with('/');
    !text.is_empty() && (is_path || !text.contains('/')) && !text.contains(['{', '}'])
}

/// `text` with its placeholders replaced.
pub(super) fn fill<'t>(text: &'t str, name: &str, address: &str) -> Result<String, Unknown<'t>> {
    let marks = [("{name}", name), ("{address}", address), ("{{", "{"), ("}}", "}")];
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, from)) = rest.find(['{', '}']).and_then(|at| rest.split_at_checked(at)) {
        filled.push_str(before);
        let mark = marks.iter().find_map(|(mark, value)| Some((value, from.strip_prefix(mark)?)));
        let Some((value, after)) = mark else {
            return Err(Unknown(from.split_inclusive('}').next().unwrap_or(from)));
        };
        filled.push_str(value);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Whether `text` can only be a name or an address: it does not begin an option, and is not a path.
fn is_plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '[' | '_'))
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:_-[]%".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_within_arguments_and_braces_written_twice_are_braces() {
        let filled = |text: &'static str| fill(text, "cli-1", "10.0.0.1:4321");
        for (text, expected) in [
            ("restart", "restart"),
            ("", ""),
            ("copilot-cli@{name}.service", "copilot-cli@cli-1.service"),
            ("{name}{address}", "cli-110.0.0.1:4321"),
            ("{{name}} {{{name}}} ä", "{name} {cli-1} ä"),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(expected), "{text}");
        }
        for (text, wrong) in [
            ("a{nmae}b", "{nmae}"),
            ("{ name }", "{ name }"),
            ("{NAME}", "{NAME}"),
            ("{", "{"),
            ("x}", "}"),
            ("{name", "{name"),
            ("{}", "{}"),
        ] {
            assert_eq!(filled(text), Err(Unknown(wrong)), "{text}");
        }
    }

    #[test]
    fn a_placeholder_is_not_filled_twice() {
        let command = RestartCommand::new(["p", "{address}", "{name}"].map(str::to_owned).into()).unwrap();
        assert_eq!(command.arguments("a", "b:1").unwrap(), ["b:1", "a"]);
        assert_eq!(fill("{name}", "{address}", "x").unwrap(), "{address}");
    }

    #[test]
    fn a_name_from_elsewhere_is_no_option_no_path_and_no_second_word() {
        let command = RestartCommand::new(["p", "{name}"].map(str::to_owned).into()).unwrap();
        for plain in
            ["cli-1", "cli-0.example:4322", "_cli.example:1", "10.0.0.1:4321", "[fe80::1%2]:1", "a..b"]
        {
            assert_eq!(command.arguments(plain, "a:1").as_deref(), Some([plain.to_owned()].as_slice()));
            assert!(command.arguments("a", plain).is_some());
        }
        for hostile in [
            "",
            "-rf",
            "--now",
            "/etc/passwd",
            "../x",
            ".",
            "..",
            "a/b",
            "a b",
            "a\nb",
            "a\0b",
            "$(x)",
            "a;b",
            "*",
            "@x",
            "a@b",
            "a\\x2d",
            "ä",
            "{name}",
            "=x",
        ] {
            assert_eq!(command.arguments(hostile, "a:1"), None, "{hostile}");
            assert_eq!(command.arguments("a", hostile), None, "{hostile}");
        }
    }

    #[test]
    fn a_program_is_a_name_or_a_path_from_the_root() {
        for sound in ["systemctl", "/usr/bin/systemctl", "a.b", "-x"] {
            assert!(is_program(sound), "{sound}");
        }
        for bad in ["", "./x", "bin/x", "/", "/bin/", "{name}", "/opt/{name}/run", "x{{"] {
            assert!(!is_program(bad), "{bad}");
        }
    }
}
