//! Single values: how TOML values are read as durations, sizes, counts and words, and how those are shown in messages.
//!
//! Everything here is pure. A [`ValueFault`]'s message is the rest of a sentence that begins with the key: "must be …".

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use toml::de::DeValue;

use super::problem::ValueFault;
use super::schema::{listed, nearest, shown};

/// The shortest time that is worth a timer.
pub(super) const SHORTEST: Duration = Duration::from_millis(10);
/// The bounds of most deadlines.
pub(super) const UP_TO_AN_HOUR: RangeInclusive<Duration> = SHORTEST..=Duration::from_hours(1);

/// Something with an order, a zero and bounds.
pub(super) trait Quantity: Copy + PartialOrd + Default {
    /// Reads it, without regard to bounds.
    fn read(value: &DeValue<'_>) -> Result<Self, ValueFault>;
    /// As the file would have it, without quotes.
    fn show(self) -> String;
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size(pub(super) usize);

/// Reads a quantity that must lie within `bounds`.
pub(super) fn bounded<Q: Quantity>(value: &DeValue<'_>, bounds: &RangeInclusive<Q>) -> Result<Q, ValueFault> {
    let quantity = Q::read(value)?;
    if bounds.contains(&quantity) { Ok(quantity) } else { Err(out_of_bounds(quantity, bounds, "")) }
}

/// Reads a quantity that must lie within `bounds`, or be zero, which is `None` and means `zero`.
pub(super) fn or_zero<Q: Quantity>(
    value: &DeValue<'_>,
    bounds: &RangeInclusive<Q>,
    zero: &str,
) -> Result<Option<Q>, ValueFault> {
    let quantity = Q::read(value)?;
    if quantity == Q::default() {
        return Ok(None);
    }
    let or_zero = format!(", or {} for {zero}", Q::default().show());
    if bounds.contains(&quantity) {
        Ok(Some(quantity))
    } else {
        Err(out_of_bounds(quantity, bounds, &or_zero))
    }
}

fn out_of_bounds<Q: Quantity>(quantity: Q, bounds: &RangeInclusive<Q>, or_zero: &str) -> ValueFault {
    let (low, high) = (bounds.start().show(), bounds.end().show());
    ValueFault::new(format!("must be between {low} and {high}{or_zero}, not {}", quantity.show()))
}

/// Reads one of a closed set, each under its label.
pub(super) fn word<T: Copy>(
    value: &DeValue<'_>,
    all: &[T],
    label: impl Fn(T) -> &'static str,
) -> Result<T, ValueFault> {
    let text = text(value)?;
    if let Some(choice) = all.iter().find(|choice| label(**choice) == text) {
        return Ok(*choice);
    }
    let known = listed(all.iter().map(|choice| format!("\"{}\"", label(*choice))), "or");
    let fault = ValueFault::new(format!("must be {known}, not \"{}\"", shown(text)));
    Err(match nearest(text, all.iter().map(|choice| label(*choice))) {
        Some(word) => fault.help(format!("did you mean \"{word}\"?")),
        None => fault,
    })
}

/// Reads a truth value.
pub(super) fn yes_or_no(value: &DeValue<'_>) -> Result<bool, ValueFault> {
    match value {
        DeValue::Boolean(yes) => Ok(*yes),
        _ => Err(must_be("`true` or `false`", value)),
    }
}

/// Reads a string.
pub(super) fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, ValueFault> {
    value.as_str().ok_or_else(|| must_be("a string", value))
}

/// "must be a string, not an integer".
pub(super) fn must_be(wanted: &str, value: &DeValue<'_>) -> ValueFault {
    let found = value.type_str();
    let article = if found.starts_with(['a', 'i']) { "an" } else { "a" };
    ValueFault::new(format!("must be {wanted}, not {article} {found}"))
}

/// humantime adds up without bounds and can overflow; no sane duration is this long.
const TEXT_BYTES_MAX: usize = 24;

/// The fault of a duration without a unit.
fn seconds(fault: ValueFault, number: &str) -> ValueFault {
    if number.len() > TEXT_BYTES_MAX {
        return fault;
    }
    fault.help(format!("durations are strings with a unit: if seconds are meant, \"{number}s\""))
}

impl Quantity for Duration {
    fn read(value: &DeValue<'_>) -> Result<Self, ValueFault> {
        const WANTED: &str = "a duration such as \"500ms\", \"2s\" or \"5m\"";
        match value {
            DeValue::String(text) => {
                let short = Some(text).filter(|text| text.len() <= TEXT_BYTES_MAX);
                let duration = short.and_then(|text| humantime::parse_duration(text).ok());
                duration.ok_or_else(|| {
                    let fault = ValueFault::new(format!("must be {WANTED}, not \"{}\"", shown(text)));
                    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                    if is_number { seconds(fault, text) } else { fault }
                })
            }
            DeValue::Integer(number) => Err(seconds(must_be(WANTED, value), number.as_str())),
            _ => Err(must_be(WANTED, value)),
        }
    }

    fn show(self) -> String {
        humantime::format_duration(self).to_string()
    }
}

impl Quantity for Size {
    fn read(value: &DeValue<'_>) -> Result<Self, ValueFault> {
        const WANTED: &str = "a size such as \"64KiB\", \"1MiB\" or a number of bytes";
        match value {
            DeValue::String(text) => {
                let size = text.parse::<ByteSize>().ok().and_then(|size| usize::try_from(size.as_u64()).ok());
                size.map(Self)
                    .ok_or_else(|| ValueFault::new(format!("must be {WANTED}, not \"{}\"", shown(text))))
            }
            DeValue::Integer(_) => integer(value).map(Self),
            _ => Err(must_be(WANTED, value)),
        }
    }

    fn show(self) -> String {
        self.to_string()
    }
}

/// Exact: in the largest unit that divides it.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let divides = |bits: u32| self.0 > 0 && self.0.trailing_zeros() >= bits;
        match units.iter().find(|(_, bits)| divides(*bits)) {
            Some((unit, bits)) => write!(f, "{}{unit}", self.0 >> bits),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Quantity for usize {
    fn read(value: &DeValue<'_>) -> Result<Self, ValueFault> {
        integer(value)
    }

    fn show(self) -> String {
        self.to_string()
    }
}

impl Quantity for u32 {
    fn read(value: &DeValue<'_>) -> Result<Self, ValueFault> {
        integer(value)
    }

    fn show(self) -> String {
        self.to_string()
    }
}

impl Quantity for f64 {
    fn read(value: &DeValue<'_>) -> Result<Self, ValueFault> {
        let number = match value {
            DeValue::Float(float) => float.as_str().parse::<Self>().ok(),
            DeValue::Integer(_) => integer::<u32>(value).ok().map(Self::from),
            _ => return Err(must_be("a number", value)),
        };
        let finite = number.filter(|number| number.is_finite());
        finite.ok_or_else(|| ValueFault::new("must be a finite number, and not less than 0".to_owned()))
    }

    fn show(self) -> String {
        self.to_string()
    }
}

fn integer<T: TryFrom<i128>>(value: &DeValue<'_>) -> Result<T, ValueFault> {
    let DeValue::Integer(number) = value else {
        return Err(must_be("a whole number", value));
    };
    let read = i128::from_str_radix(number.as_str(), number.radix()).ok().and_then(|n| T::try_from(n).ok());
    read.ok_or_else(|| {
        let negative = number.as_str().starts_with('-');
        ValueFault::new(if negative { "must not be negative" } else { "is too large a number" })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> DeValue<'_> {
        DeValue::parse(text).unwrap().into_inner()
    }

    fn read<Q: Quantity>(text: &str) -> Result<Q, String> {
        Q::read(&parsed(text)).map_err(|fault| fault.message)
    }

    #[test]
    fn durations_take_units_and_never_overflow() {
        assert_eq!(read("'2s'"), Ok(Duration::from_secs(2)));
        assert_eq!(read("'1m 500ms'"), Ok(Duration::from_millis(60_500)));
        assert_eq!(read::<Duration>("'0s'"), Ok(Duration::ZERO));
        // humantime 2.4 panics on this one
        assert!(read::<Duration>("'18446744073709551615s1000ms'").is_err());
        for bad in ["''", "'2'", "'-2s'", "'2 parsecs'", "2", "2.5", "true", "['2s']"] {
            assert!(read::<Duration>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_duration_without_a_unit_is_told_how_to_have_one() {
        let help = |text: &str| Duration::read(&parsed(text)).unwrap_err().help;
        for bare in ["10", "'10'"] {
            assert_eq!(
                help(bare).as_deref(),
                Some("durations are strings with a unit: if seconds are meant, \"10s\""),
                "{bare}"
            );
        }
        for other in ["''", "'x'", "true", "'1111111111111111111111111'"] {
            assert_eq!(help(other), None, "{other}");
        }
    }

    #[test]
    fn sizes_take_units_or_bytes_and_show_exactly() {
        assert_eq!(read("'1MiB'"), Ok(Size(1 << 20)));
        assert_eq!(read("'1 MB'"), Ok(Size(1_000_000)));
        assert_eq!(read("4_096"), Ok(Size(4096)));
        assert_eq!(read("0x10"), Ok(Size(16)));
        for bad in
            ["'MiB'", "'1 parsec'", "-1", "1.5", "'-1'", "99999999999999999999999999999999999999999999"]
        {
            assert!(read::<Size>(bad).is_err(), "{bad}");
        }
        assert_eq!(Size(1 << 20).show(), "1MiB");
        assert_eq!(Size((1 << 20) + 1).show(), "1048577B");
        assert_eq!(Size(0).show(), "0B");
    }

    #[test]
    fn numbers_stay_finite() {
        assert_eq!(read("1.25"), Ok(1.25));
        assert_eq!(read("2"), Ok(2.0));
        for bad in ["inf", "nan", "-inf", "1e400", "'1.25'"] {
            assert!(read::<f64>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn zero_is_unlimited_only_where_it_may_be() {
        assert_eq!(or_zero(&parsed("0"), &(1usize..=9), "off"), Ok(None));
        assert_eq!(or_zero(&parsed("9"), &(1usize..=9), "off"), Ok(Some(9)));
        assert!(or_zero(&parsed("10"), &(1usize..=9), "off").is_err());
        assert!(bounded(&parsed("0"), &(1usize..=9)).is_err());
    }
}
