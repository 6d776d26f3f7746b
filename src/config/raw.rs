//! The file as written: tables of spanned values, read key by key.
//!
//! A [`Reader`] never fails. What is wrong is pushed to the findings and the default returned, so that the walk goes on
//! and everything is found at once; the configuration is thrown away at the end if anything was found.

use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Findings, Mark, ValueFault};
use super::schema::{self, SECTIONS, Section};
use super::values::{self, Quantity};

/// One table of the file, or the absence of one.
pub(super) struct Reader<'r, 't> {
    section: &'static Section,
    header: Option<Range<usize>>,
    table: Option<&'r DeTable<'r>>,
    found: &'r mut Findings<'t>,
}

/// Reports what is at the top of the file and no section.
pub(super) fn report_unknown_sections(root: &DeTable<'_>, found: &mut Findings<'_>) {
    for key in root.keys() {
        if SECTIONS.iter().all(|section| section.name != key.get_ref()) {
            found.at(key.span(), schema::unknown_section(key.get_ref()));
        }
    }
}

/// The tables of a repeated section, at most `count_max`.
pub(super) fn tables<'r>(
    root: &'r DeTable<'r>,
    section: &Section,
    count_max: usize,
    found: &mut Findings<'_>,
) -> Vec<(&'r DeTable<'r>, Range<usize>)> {
    let Some(value) = root.get(section.name) else {
        let none = ValueFault::new(format!("no {section}: at least one is needed"));
        found.missing(None, none);
        return Vec::new();
    };
    let wanted = format!("every {} is its own `{section}`", section.name);
    let DeValue::Array(array) = value.get_ref() else {
        let fault = values::must_be("a list of tables", value.get_ref());
        found.at(value.span(), named(section.name, fault).help(wanted));
        return Vec::new();
    };
    if array.is_empty() {
        found.missing(Some(value.span()), ValueFault::new(format!("no {section}: at least one is needed")));
    }
    if let Some(surplus) = array.get(count_max) {
        found.at(surplus.span(), ValueFault::new(format!("more than {count_max} times {section}")));
    }
    let mut tables = Vec::new();
    for element in array.iter().take(count_max) {
        match element.get_ref() {
            DeValue::Table(table) => tables.push((table, element.span())),
            other => {
                let fault = values::must_be("a list of tables", other);
                found.at(element.span(), named(section.name, fault).help(wanted.clone()));
            }
        }
    }
    tables
}

/// The fault, with the key it is about.
pub(super) fn named(key: &str, fault: ValueFault) -> ValueFault {
    ValueFault { message: format!("`{key}` {}", fault.message), help: fault.help }
}

impl<'r, 't> Reader<'r, 't> {
    /// The one table of `section`, written or not.
    pub(super) fn of(root: &'r DeTable<'r>, section: &'static Section, found: &'r mut Findings<'t>) -> Self {
        let value = root.get(section.name);
        match value.map(Spanned::get_ref) {
            Some(DeValue::Table(table)) => {
                Self::new(section, table, value.map(Spanned::span).unwrap_or_default(), found)
            }
            Some(other) => {
                let fault =
                    values::must_be("one table", other).help(format!("write `{section}`, and once only"));
                found.at(value.map(Spanned::span).unwrap_or_default(), named(section.name, fault));
                Self { section, header: None, table: None, found }
            }
            None => Self { section, header: None, table: None, found },
        }
    }

    /// One table of `section` with its place; reports its unknown keys.
    pub(super) fn new(
        section: &'static Section,
        table: &'r DeTable<'r>,
        header: Range<usize>,
        found: &'r mut Findings<'t>,
    ) -> Self {
        for key in table.keys() {
            if !section.keys.contains(&key.get_ref().as_ref()) {
                found.at(key.span(), schema::unknown_key(key.get_ref(), section));
            }
        }
        Self { section, header: Some(header), table: Some(table), found }
    }

    /// What is written for `key`.
    pub(super) fn value(&self, key: &'static str) -> Option<&'r Spanned<DeValue<'r>>> {
        debug_assert!(self.section.keys.contains(&key), "{key} is not in the schema of {}", self.section);
        self.table.and_then(|table| table.get(key))
    }

    /// Where a problem of `key` is shown: at its value, else at its table, else nowhere.
    pub(super) fn span(&self, key: &'static str) -> Option<Range<usize>> {
        self.value(key).map(Spanned::span).or_else(|| self.header.clone())
    }

    /// Whether an unknown key in the table may be a misspelling of this one.
    pub(super) fn misspells(&self, key: &'static str) -> bool {
        let unknown = |written: &&str| !self.section.keys.contains(written);
        let written = self.table.into_iter().flat_map(|table| table.keys()).map(|key| key.get_ref().as_ref());
        written
            .filter(unknown)
            .any(|written| schema::nearest(written, self.section.keys.iter().copied()) == Some(key))
    }

    /// `section.key`, as messages name it.
    pub(super) fn full_name(&self, key: &str) -> String {
        format!("{}.{key}", self.section.name)
    }

    /// Reads `key` with `read`. `None` if it is not written or wrong, which is then reported.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&'r DeValue<'r>) -> Result<T, ValueFault>,
    ) -> Option<T> {
        let value = self.value(key)?;
        read(value.get_ref()).map_err(|fault| self.report(key, fault)).ok()
    }

    /// Reads a key that has no default.
    pub(super) fn require<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&'r DeValue<'r>) -> Result<T, ValueFault>,
    ) -> Option<T> {
        if self.value(key).is_none() {
            let fault = ValueFault::new(format!("no `{key}` in this {}", self.section));
            self.found.missing(self.header.clone(), fault);
        }
        self.take(key, read)
    }

    /// A quantity within bounds.
    pub(super) fn bounded<Q: Quantity>(
        &mut self,
        key: &'static str,
        default: Q,
        bounds: &RangeInclusive<Q>,
    ) -> Q {
        self.take(key, |value| values::bounded(value, bounds)).unwrap_or(default)
    }

    /// A quantity within bounds, or zero for unlimited.
    pub(super) fn unlimited<Q: Quantity>(
        &mut self,
        key: &'static str,
        default: Option<Q>,
        bounds: &RangeInclusive<Q>,
    ) -> Option<Q> {
        self.take(key, |value| values::or_zero(value, bounds, "unlimited")).unwrap_or(default)
    }

    /// A quantity within bounds, or zero for off.
    pub(super) fn or_off<Q: Quantity>(
        &mut self,
        key: &'static str,
        default: Option<Q>,
        bounds: &RangeInclusive<Q>,
    ) -> Option<Q> {
        self.take(key, |value| values::or_zero(value, bounds, "off")).unwrap_or(default)
    }

    /// One of a closed set of words.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        default: T,
        all: &[T],
        label: impl Fn(T) -> &'static str,
    ) -> T {
        self.take(key, |value| values::word(value, all, label)).unwrap_or(default)
    }

    /// A list, each element read with `read`; `None` if it is not written.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        count_max: usize,
        read: impl Fn(&str) -> Result<T, ValueFault>,
    ) -> Option<Vec<T>> {
        let array = self.take(key, |value| match value {
            DeValue::Array(array) if array.len() > count_max => {
                Err(ValueFault::new(format!("must have at most {count_max} elements, not {}", array.len())))
            }
            DeValue::Array(array) => Ok(array),
            _ => Err(values::must_be("a list of strings", value)),
        })?;
        let mut list = Vec::new();
        for element in array {
            let text = element.get_ref().as_str();
            let wrong = || values::must_be("strings throughout", element.get_ref());
            match text.ok_or_else(wrong).and_then(&read) {
                Ok(item) => list.push(item),
                Err(fault) => self.found.at(element.span(), named(&self.full_name(key), fault)),
            }
        }
        Some(list)
    }

    /// Reports that what `key` says is wrong.
    pub(super) fn report(&mut self, key: &'static str, fault: ValueFault) {
        let fault = named(&self.full_name(key), fault);
        self.found.at(self.span(key), fault);
    }

    pub(super) fn mark(&self) -> Mark {
        self.found.mark()
    }

    /// Whether everything since `mark` was read as the file has it, so that two values may be compared.
    pub(super) fn clean_since(&self, mark: Mark) -> bool {
        self.found.clean_since(mark)
    }

    pub(super) fn found(&mut self) -> &mut Findings<'t> {
        self.found
    }
}
