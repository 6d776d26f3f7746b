//! Warnings about a configuration that is sound: certificates that are not valid now, or soon will not be.

use std::time::{Duration, UNIX_EPOCH};

use super::model::Config;
use super::tls::Validity;

/// A certificate with less time left is warned about: the same time as in the Prometheus alert.
const SOON: i64 = 7 * 24 * 60 * 60;
/// The last time that can be shown.
const LAST: i64 = 253_402_300_799;

/// The warnings of a configuration, at `now` in seconds since 1970; the same in the log, the status and `sessile check`.
pub fn warnings(config: &Config, now: i64) -> Vec<String> {
    let mut whose: Vec<(String, Validity)> = Vec::new();
    for listener in &config.listeners {
        let validity = listener.tls.as_ref().and_then(|tls| tls.validity());
        whose.extend(validity.map(|validity| (format!("of listener {}", listener.address), validity)));
    }
    let admin = config.admin.tls.as_ref().and_then(|tls| tls.validity());
    whose.extend(admin.map(|validity| ("of the admin port".to_owned(), validity)));
    // Usually the same certificate is shown to all backends.
    let shown = |backend: &super::BackendSpec| backend.tls.as_ref().and_then(|tls| tls.validity());
    let mut seen = Vec::new();
    for (backend, validity) in config.backends.iter().filter_map(|one| Some((one, shown(one)?))) {
        if seen.contains(&validity) {
            continue;
        }
        seen.push(validity);
        let all = config.backends.iter().filter(|other| shown(other) == Some(validity)).count();
        let more = match all.saturating_sub(1) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        whose.push((format!("shown to backend {}{more}", backend.name), validity));
    }
    let warning = |(whose, validity): &(String, Validity)| {
        verdict(*validity, now).map(|verdict| format!("the certificate {whose} {verdict}"))
    };
    whose.iter().filter_map(warning).collect()
}

/// What is wrong with a certificate's time, if anything.
fn verdict(Validity { from, until }: Validity, now: i64) -> Option<String> {
    if until <= now {
        Some(format!("has expired: it was good until {}", at(until)))
    } else if from > now {
        Some(format!("is not good yet: it will be from {}", at(from)))
    } else if until.saturating_sub(now) < SOON {
        Some(format!("expires soon: it is good until {}", at(until)))
    } else {
        None
    }
}

fn at(seconds: i64) -> String {
    let seconds = u64::try_from(seconds.clamp(0, LAST)).unwrap_or_default();
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_judged_by_its_time() {
        const NOW: i64 = 1_800_000_000;
        for (from, until, expected) in [
            (0, NOW + SOON, None),
            (0, NOW + SOON - 1, Some("expires soon: it is good until 2027-01-22T07:59:59Z")),
            (0, NOW + 1, Some("expires soon: it is good until 2027-01-15T08:00:01Z")),
            (0, NOW, Some("has expired: it was good until 2027-01-15T08:00:00Z")),
            (NOW + 1, NOW + 2, Some("is not good yet: it will be from 2027-01-15T08:00:01Z")),
            (NOW, i64::MAX, None),
            (0, i64::MIN, Some("has expired: it was good until 1970-01-01T00:00:00Z")),
            (i64::MAX, i64::MAX, Some("is not good yet: it will be from 9999-12-31T23:59:59Z")),
        ] {
            assert_eq!(verdict(Validity { from, until }, NOW).as_deref(), expected, "{from} {until}");
        }
    }
}
