//! Times that differ a little every time: what many do after one event must not be done in step.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// `time`, multiplied by chance with something between the two, in thousandths.
pub fn stretched(time: Duration, least: u32, most: u32) -> Duration {
    let wide = u64::from(most.saturating_sub(least)).saturating_add(1);
    let above = RandomState::new().hash_one(time).checked_rem(wide).unwrap_or(0);
    let permille = least.saturating_add(u32::try_from(above).unwrap_or(0));
    let exact = time.as_nanos().saturating_mul(u128::from(permille)).checked_div(1000).unwrap_or(0);
    Duration::from_nanos(u64::try_from(exact).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_differ_within_their_bounds() {
        let second = Duration::from_secs(1);
        let times: Vec<Duration> = (0..500).map(|_| stretched(second, 900, 1100)).collect();
        assert!(times.iter().all(|time| (900..=1100).contains(&time.as_millis())));
        let halves = |late: bool| times.iter().filter(|time| (**time > second) == late).count();
        assert!(halves(true) > 100 && halves(false) > 100, "{} late", halves(true));
        assert_eq!(stretched(second, 1000, 1000), second);
    }
}
