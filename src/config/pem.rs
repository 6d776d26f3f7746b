//! PEM files: certificates, private keys and revocation lists, or why a file holds none that can be used.
//!
//! A message is the rest of a sentence that begins with the file, and never quotes it: it may be a key.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use tokio_rustls::rustls;
use x509_parser::parse_x509_certificate;
use zeroize::Zeroize;

/// The certificates of a file, in its order; at least one.
pub(super) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let certificates = certificates.map_err(|error| unsound(&error, "certificate"))?;
    if certificates.is_empty() {
        return Err("holds no certificate".into());
    }
    for (number, certificate) in (1_usize..).zip(&certificates) {
        if validity(certificate).is_none() {
            return Err(format!("holds a certificate, number {number}, that is none"));
        }
    }
    Ok(certificates)
}

/// From when and until when a certificate is valid, in seconds since 1970.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    let validity = parsed.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// The private key of a file. Its bytes are wiped once the cryptography library has it.
pub(super) fn key(text: &str) -> Result<Arc<dyn SigningKey>, String> {
    let mut der = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| match error {
        Error::NoItemsFound if text.contains("ENCRYPTED PRIVATE KEY") => {
            "holds an encrypted private key: it must be one without a passphrase".to_owned()
        }
        error => unsound(&error, "private key"),
    })?;
    let key = any_supported_type(&der);
    der.zeroize();
    // The library's message about a key that it cannot read might quote it.
    key.map_err(|_| "holds a private key of a kind that cannot be used".to_owned())
}

/// The revocation lists of a file; at least one.
pub(super) fn revocations(text: &str) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(text.as_bytes()).collect();
    let lists = lists.map_err(|error| unsound(&error, "revocation list"))?;
    if lists.is_empty() { Err("holds no revocation list".into()) } else { Ok(lists) }
}

fn unsound(error: &Error, what: &str) -> String {
    match error {
        Error::NoItemsFound => format!("holds no {what}"),
        Error::MissingSectionEnd { .. } => "ends before its last section does: it is not whole".to_owned(),
        Error::Base64Decode(_) => "has a section that is not base64".to_owned(),
        _ => "is not sound PEM".to_owned(),
    }
}
