//! States that operators have set: they outlive reloads until the state in the file changes for that backend. Pure.

use std::collections::HashMap;

use crate::config::AdminState;

/// The states set by operators, each with the state in the file at that time.
#[derive(Debug, Default)]
pub struct Commands(HashMap<String, (AdminState, AdminState)>);

impl Commands {
    /// An operator gives a backend a state.
    pub fn give(&mut self, name: &str, state: AdminState, file_state: AdminState) {
        self.0.insert(name.to_owned(), (state, file_state));
    }

    /// The state in force for a backend whose state in the file is `file_state`. If that has changed since the command,
    /// the command is forgotten.
    pub fn in_force(&mut self, name: &str, file_state: AdminState) -> AdminState {
        match self.0.get(name) {
            Some((state, said)) if *said == file_state => *state,
            _ => {
                self.0.remove(name);
                file_state
            }
        }
    }

    /// Every command: backend, state, and the state in the file at that time.
    pub fn iter(&self) -> impl Iterator<Item = (&str, AdminState, AdminState)> {
        self.0.iter().map(|(name, (state, file_state))| (name.as_str(), *state, *file_state))
    }

    /// Forgets commands about backends that have left the file.
    pub fn keep(&mut self, is_listed: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| is_listed(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_holds_until_the_file_says_something_else() {
        let mut commands = Commands::default();
        let (ready, drain, maint) = (AdminState::Ready, AdminState::Drain, AdminState::Maint);
        commands.give("a", drain, ready);
        assert_eq!(commands.in_force("a", ready), drain);
        assert_eq!(commands.in_force("b", ready), ready);
        assert_eq!(commands.in_force("a", maint), maint);
        assert_eq!(commands.in_force("a", ready), ready, "the file has spoken since");
        commands.give("a", drain, ready);
        commands.keep(|name| name != "a");
        assert_eq!(commands.in_force("a", ready), ready);
    }
}
