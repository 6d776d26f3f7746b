//! The checks of `[admin]`: who may reach the admin port, and with which proof.

use std::net::SocketAddr;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use super::address;
use super::check_tls;
use super::model::{Admin, AdminAddress};
use super::problem::ValueFault;
use super::raw::Reader;
use super::schema::ADMIN_TLS;
use super::secret::{Plain, Surroundings, secret};
use super::values;

const TOKEN_BYTES_MIN: usize = 16;
const TOKEN_BYTES_MAX: usize = 1024;

/// A socket the file asks for, and where it does.
pub(super) struct Socket {
    pub(super) what: &'static str,
    pub(super) address: SocketAddr,
    /// `None` = nowhere: it is a default.
    pub(super) span: Option<Range<usize>>,
}

/// Reads the section, and notes its sockets.
pub(super) fn admin(
    mut reader: Reader<'_, '_>,
    sockets: &mut Vec<Socket>,
    around: Surroundings<'_>,
) -> Admin {
    let default = Admin::default();
    let token = secret(&mut reader, "token", Plain::Refused, around);
    if let Some(Err(fault)) = token.as_ref().map(|token| strong(token.reveal())) {
        reader.report("token", fault);
    }
    let address = match reader.value("address") {
        Some(_) => reader.take("address", |value| address::admin(values::text(value)?)),
        None => reader.found().is_whole().then(|| default.address.clone()),
    };
    let tls = check_tls::served(&ADMIN_TLS, &mut reader, around);
    if let (Some(_), Some(AdminAddress::Unix(_))) = (reader.value("tls"), &address) {
        let fault = ValueFault::new("needs an IP address in `admin.address`, not the path of a Unix socket");
        reader.report(
            "tls",
            fault.help("a Unix socket needs no TLS: only the balancer's own user can open it"),
        );
    }
    // A key that is there but could not be read is reported already; it may be on a line that is not TOML.
    let mutual = match reader.value("tls").map(Spanned::get_ref) {
        Some(DeValue::Table(tls)) => tls.contains_key("client_ca"),
        _ => false,
    };
    let unlocked = reader.value("token").is_none() && !mutual && reader.found().is_whole();
    if let Some(address) = address.as_ref().filter(|address| unlocked && address.is_open()) {
        reader.report("address", open_to_all(address));
    }
    if let Some(AdminAddress::Tcp(address)) = address {
        sockets.push(Socket { what: "admin address", address, span: reader.span("address") });
    }
    let metrics_address = reader.take("metrics_address", |value| address::listening(values::text(value)?));
    if let Some(address) = metrics_address {
        sockets.push(Socket { what: "metrics address", address, span: reader.span("metrics_address") });
    }
    Admin { address: address.unwrap_or(default.address), tls, token, metrics_address }
}

fn open_to_all(address: &AdminAddress) -> ValueFault {
    let shown = match address {
        AdminAddress::Tcp(address) => address.to_string(),
        AdminAddress::Unix(path) => path.display().to_string(),
    };
    let rule = "must be a loopback address or a Unix socket path while there is neither `token` nor `tls` with \
                `client_ca`, not";
    ValueFault::new(format!("{rule} \"{shown}\"")).help(
        "who reaches it can take the fleet down: write `token = { file = \"PATH\" }`, or demand certificates; \
         Prometheus and kubelets need only `metrics_address`",
    )
}

/// Whether a token cannot be guessed, and fits into a header.
fn strong(token: &str) -> Result<(), ValueFault> {
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ValueFault::new(
            "must be letters, digits and signs of ASCII without a space between them",
        ));
    }
    match token.len() {
        TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX => Ok(()),
        bytes => Err(ValueFault::new(format!(
            "must be {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} characters long, not {bytes}"
        ))
        .help("make one with `openssl rand -hex 32`")),
    }
}
