//! Up or down, from a row of probe results. Pure.

/// What probes say of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Not probed yet.
    #[default]
    Unknown,
    /// It answers.
    Up,
    /// It does not.
    Down,
}

impl Health {
    /// The word in logs and the admin API.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Counts results in a row. If the very first result is good, the backend is up at once: a start must not wait for `rise`.
/// If it is bad, it is not down at once: a server that is down counts as having nothing live, and one lost second must not
/// decide that.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judge {
    health: Health,
    against: u32,
}

impl Judge {
    /// Takes one probe's result; the new health if it changed.
    pub fn observe(&mut self, answered: bool, rise: u32, fall: u32) -> Option<Health> {
        let (verdict, needed) = if answered { (Health::Up, rise) } else { (Health::Down, fall) };
        if verdict == self.health {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let first = self.health == Health::Unknown && answered;
        if !first && self.against < needed {
            return None;
        }
        *self = Self { health: verdict, against: 0 };
        Some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rise_and_fall_count_results_in_a_row() {
        let mut judge = Judge::default();
        let mut row = |results: &str| -> Vec<Option<Health>> {
            results.chars().map(|c| judge.observe(c == '+', 2, 3)).collect()
        };
        assert_eq!(row("+"), [Some(Health::Up)]);
        assert_eq!(row("--+--"), [None; 5]);
        assert_eq!(row("-"), [Some(Health::Down)]);
        assert_eq!(row("+-+"), [None; 3]);
        assert_eq!(row("+"), [Some(Health::Up)]);
    }

    #[test]
    fn the_first_good_result_decides_and_a_bad_one_does_not() {
        assert_eq!(Judge::default().observe(true, 5, 5), Some(Health::Up));
        let mut judge = Judge::default();
        assert_eq!([(); 3].map(|()| judge.observe(false, 5, 3)), [None, None, Some(Health::Down)]);
        assert_eq!(
            Judge::default().observe(false, 5, 1),
            Some(Health::Down),
            "what is sure needs no second one"
        );
    }
}
