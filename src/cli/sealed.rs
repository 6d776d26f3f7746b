//! TLS to an admin port: the handshake, and what to do if it fails.

use std::error::Error;
use std::io;

use tokio::net::TcpStream;
use tokio_rustls::rustls::{self, AlertDescription, CertificateError};

use super::terminal::plain;
use crate::config::BackendTls;
use crate::net::Sealed;

/// Does the handshake with `authority`, a host and a port.
///
/// # Errors
/// Why not, as the rest of a sentence that begins with the address.
pub(super) async fn shake(tls: &BackendTls, authority: &str, socket: TcpStream) -> Result<Sealed, String> {
    let Some(name) = tls.name_of(authority) else {
        return Err("has a host that no certificate can name\n  say with --name which one it has".into());
    };
    let sealed = Sealed::connect(tls, name, socket).await;
    sealed.map_err(|error| why(&error).unwrap_or_else(|| format!("ends the TLS handshake: {error}")))
}

/// Why a request failed, if the reason is TLS, worded likewise. A server says only after the handshake that a
/// certificate is missing or not good.
pub(super) fn why(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(fault) = inner.and_then(|inner| inner.downcast_ref()) {
            return Some(words(fault));
        }
        next = error.source();
    }
    None
}

fn words(fault: &rustls::Error) -> String {
    use rustls::Error;
    // The message may quote the other side's certificate.
    let told = plain(&fault.to_string());
    match fault {
        Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer => {
                "shows a certificate that none of the CAs in --ca has signed".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
                "shows the certificate of somebody else: {told}\n  \
                 ask by a name that is in it, or say one with --name"
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "shows a certificate that has expired".into()
            }
            _ => format!("shows a certificate that is not good: {told}"),
        },
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "demands a certificate\n  give one with --cert and --key".into()
        }
        Error::AlertReceived(AlertDescription::UnknownCA) => {
            "does not know the CA that signed the certificate in --cert".into()
        }
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "refuses the certificate in --cert: it has expired".into()
        }
        Error::AlertReceived(AlertDescription::CertificateRevoked) => {
            "refuses the certificate in --cert: it is revoked".into()
        }
        Error::InvalidMessage(_) => "does not speak TLS\n  write http:// instead of https://".into(),
        _ => format!("ends the TLS handshake: {told}"),
    }
}
