//! Panic: so few backends are up that the probes are doubted rather than the backends. Pure.
//!
//! A balancer that sees most of its fleet down at once is probably cut off itself, and the sessions it believes
//! lost may well be live. So it does nothing that cannot be undone because of probes alone:
//! it takes no session from a backend it is attached to, closes no connection, and restarts nothing. New sessions go to
//! backends that answer, as always: no session is ever sent to a backend that does not.

use super::health::Health;

/// Whether less than `threshold` (a share from 0 to 1; `None` = never) of a fleet is up. `fleet` must not hold backends in
/// maintenance; those that have not been probed yet may well be up.
pub fn is_panic(fleet: impl IntoIterator<Item = Health>, threshold: Option<f64>) -> bool {
    let Some(threshold) = threshold else { return false };
    let (mut down, mut all) = (0_u32, 0_u32);
    for health in fleet {
        down = down.saturating_add(u32::from(health == Health::Down));
        all = all.saturating_add(1);
    }
    f64::from(all.saturating_sub(down)) < threshold * f64::from(all)
}

#[cfg(test)]
mod tests {
    use super::Health::{Down, Unknown, Up};
    use super::*;

    #[test]
    fn panic_begins_below_the_threshold_and_not_at_it() {
        let half = |fleet: &[Health]| is_panic(fleet.iter().copied(), Some(0.5));
        assert!(!half(&[Up, Up, Up]) && !half(&[Up, Down]) && !half(&[Up, Up, Down]));
        assert!(half(&[Up, Down, Down]) && half(&[Down]));
        assert!(!is_panic([Down, Down], None));
        assert!(is_panic([Up, Down], Some(1.0)) && !is_panic([Up, Up], Some(1.0)));
    }

    #[test]
    fn nobody_panics_over_what_has_not_been_probed() {
        assert!(!is_panic([Unknown, Unknown, Unknown], Some(0.5)));
        assert!(!is_panic([Unknown, Unknown, Up], Some(0.5)));
        assert!(!is_panic([], Some(1.0)));
        assert!(!is_panic([Unknown, Unknown, Down], Some(0.5)), "at the start one is found down first");
        assert!(is_panic([Unknown, Down, Down], Some(0.5)));
    }
}
