//! Reads `tls = { … }` and `proxy_protocol = { … }` tables. The files of TLS are read and tried out while the
//! configuration is checked; so are those that a command gets for its connection to an admin port.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio_rustls::rustls;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::address;
use super::file;
use super::model::Proxies;
use super::pem;
use super::problem::ValueFault;
use super::raw::Reader;
use super::schema::{BACKEND_TLS, LISTENER_PROXY, Section, UPSTREAM_TLS, shown};
use super::secret::Surroundings;
use super::tls::{BackendTls, Identity, ListenerTls, Trust};
use super::values;

/// A key may not be larger; certificates, with those of many CAs, and revocation lists may.
const KEY_BYTES_MAX: usize = 64 * 1024;
const CERTIFICATES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// No file that a configuration may name is larger.
pub const REVOCATIONS_BYTES_MAX: usize = 16 * 1024 * 1024;
const NETWORKS_MAX: usize = 1024;

/// What is written for TLS of one backend.
pub(super) enum Own {
    /// Nothing: `[upstream]` applies.
    Default,
    /// `false`: none.
    Plain,
    /// Its own.
    Tls(Arc<BackendTls>),
}

/// The proxies that may, and must, send a PROXY header.
pub(super) fn proxies(outer: &mut Reader<'_, '_>) -> Option<Proxies> {
    if let Some(DeValue::Boolean(false)) = outer.value("proxy_protocol").map(Spanned::get_ref) {
        return None;
    }
    let span = outer.span("proxy_protocol")?;
    let table = outer.take("proxy_protocol", |value| match value {
        DeValue::Table(table) => Ok(table),
        _ => Err(values::must_be("`false` or a table", value)
            .help("write `{ trusted = [\"10.0.0.0/8\"] }`: only who is named there is believed")),
    })?;
    let mark = outer.mark();
    let mut reader = Reader::new(&LISTENER_PROXY, table, span, outer.found());
    if reader.value("trusted").is_none() {
        reader.require("trusted", |_| Ok(()));
    }
    let trusted = reader.list("trusted", NETWORKS_MAX, address::network)?;
    if trusted.is_empty() && reader.clean_since(mark) {
        reader.report("trusted", ValueFault::new("must name at least one network"));
    }
    Some(Proxies { trusted })
}

/// TLS of a listener or of the admin port, as `section`; `None` if there is none or it is wrong, which is then reported.
pub(super) fn served(
    section: &'static Section,
    outer: &mut Reader<'_, '_>,
    around: Surroundings<'_>,
) -> Option<Arc<ListenerTls>> {
    let (table, span) = table(outer)?;
    let mark = outer.mark();
    let mut reader = Reader::new(section, table, span, outer.found());
    let chain = reader.require("cert", |value| certificates(value, around));
    let key = reader.require("key", |value| key(value, around));
    let ca = reader.take("client_ca", |value| certificates(value, around));
    let crl = reader.take("crl", |value| from_file(value, REVOCATIONS_BYTES_MAX, around, pem::revocations));
    if crl.is_some() && reader.value("client_ca").is_none() {
        reader.report("crl", ValueFault::new("needs `client_ca`: without it, clients show no certificate"));
    }
    let identity = identity(&mut reader, chain?, key?)?;
    if !reader.clean_since(mark) {
        return None;
    }
    let trust = ca.map(|ca| Trust { ca, crl: crl.unwrap_or_default() });
    match ListenerTls::new(identity, trust) {
        Ok(tls) => Some(Arc::new(tls)),
        Err(why) => {
            reader.report("client_ca", ValueFault::new(why));
            None
        }
    }
}

/// TLS towards all backends that have none of their own.
pub(super) fn upstream(outer: &mut Reader<'_, '_>, around: Surroundings<'_>) -> Option<Arc<BackendTls>> {
    let (table, span) = table(outer)?;
    towards(&UPSTREAM_TLS, outer, table, span, around)
}

/// TLS towards one backend.
pub(super) fn backend(outer: &mut Reader<'_, '_>, around: Surroundings<'_>) -> Own {
    if let Some(DeValue::Boolean(false)) = outer.value("tls").map(Spanned::get_ref) {
        return Own::Plain;
    }
    let Some((table, span)) = table(outer) else { return Own::Default };
    towards(&BACKEND_TLS, outer, table, span, around).map_or(Own::Plain, Own::Tls)
}

fn towards(
    section: &'static Section,
    outer: &mut Reader<'_, '_>,
    table: &DeTable<'_>,
    span: Range<usize>,
    around: Surroundings<'_>,
) -> Option<Arc<BackendTls>> {
    let mark = outer.mark();
    let mut reader = Reader::new(section, table, span, outer.found());
    let ca = reader.require("ca", |value| certificates(value, around));
    let name = reader.take("name", |value| server_name(values::text(value)?).map_err(ValueFault::new));
    let chain = reader.take("cert", |value| certificates(value, around));
    let key = reader.take("key", |value| key(value, around));
    for (one, other) in [("cert", "key"), ("key", "cert")] {
        if reader.value(one).is_some() && reader.value(other).is_none() {
            reader.report(
                one,
                ValueFault::new(format!("needs `{other}`: a certificate is shown with its key")),
            );
        }
    }
    let identity = match (chain, key) {
        (Some(chain), Some(key)) => Some(identity(&mut reader, chain, key)?),
        _ => None,
    };
    let ca = ca.filter(|_| reader.clean_since(mark))?;
    match BackendTls::new(ca, name, identity) {
        Ok(tls) => Some(Arc::new(tls)),
        Err(why) => {
            reader.report("ca", ValueFault::new(why));
            None
        }
    }
}

/// TLS towards an admin port, of the files that `--ca`, `--cert` and `--key` name.
///
/// # Errors
/// What is wrong with which of them.
pub fn towards_admin(
    ca: &Path,
    name: Option<&str>,
    pair: Option<(&Path, &Path)>,
) -> Result<BackendTls, String> {
    let fault = |option, path: &Path, why| {
        format!("{option} takes the file \"{}\", which {why}", shown(&path.display().to_string()))
    };
    let certificates = |option, path: &Path| {
        let read = parsed(path, CERTIFICATES_BYTES_MAX, pem::certificates);
        read.map_err(|why| fault(option, path, why))
    };
    let name = name.map(server_name).transpose().map_err(|why| format!("--name {why}"))?;
    let identity = match pair {
        Some((cert, key)) => {
            let chain = certificates("--cert", cert)?;
            let secret = parsed(key, KEY_BYTES_MAX, pem::key).map_err(|why| fault("--key", key, why))?;
            Some(Identity::new(chain, secret).map_err(|why| fault("--key", key, why.to_owned()))?)
        }
        None => None,
    };
    BackendTls::new(certificates("--ca", ca)?, name, identity).map_err(|why| fault("--ca", ca, why))
}

fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    let name = ServerName::try_from(text.to_owned());
    name.map_err(|_| format!("must be a host name or an IP address, not \"{}\"", shown(text)))
}

fn table<'r>(outer: &mut Reader<'r, '_>) -> Option<(&'r DeTable<'r>, Range<usize>)> {
    let span = outer.span("tls")?;
    let table = outer.take("tls", |value| match value {
        DeValue::Table(table) => Ok(table),
        _ => Err(values::must_be("a table", value).help("write `tls = { … }`, or leave it out")),
    })?;
    Some((table, span))
}

fn identity(
    reader: &mut Reader<'_, '_>,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: Arc<dyn rustls::sign::SigningKey>,
) -> Option<Identity> {
    Identity::new(chain, key).map_err(|why| reader.report("key", ValueFault::new(why))).ok()
}

fn certificates(
    value: &DeValue<'_>,
    around: Surroundings<'_>,
) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, ValueFault> {
    from_file(value, CERTIFICATES_BYTES_MAX, around, pem::certificates)
}

fn key(
    value: &DeValue<'_>,
    around: Surroundings<'_>,
) -> Result<Arc<dyn rustls::sign::SigningKey>, ValueFault> {
    from_file(value, KEY_BYTES_MAX, around, pem::key)
}

/// What `parse` makes of the file that `value` names.
fn from_file<T>(
    value: &DeValue<'_>,
    bytes_max: usize,
    around: Surroundings<'_>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, ValueFault> {
    let path = values::text(value)?;
    parsed(&around.path(path)?, bytes_max, parse)
        .map_err(|why| ValueFault::new(format!("takes the file \"{}\", which {why}", shown(path))))
}

/// What `parse` makes of a file. The text is wiped: it may be a key.
fn parsed<T>(path: &Path, bytes_max: usize, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, String> {
    file::read(path, bytes_max).and_then(|text| parse(&Zeroizing::new(text)))
}
