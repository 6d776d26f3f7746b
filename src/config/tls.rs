//! TLS of a listener or a backend: built from the contents of its files, and compared by them.
//!
//! Each value has its own ticket keys and its own store of TLS sessions. A reload that finds the files unchanged keeps the
//! value; any change makes a new one, so no session is resumed that an older trust let in.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{ClientConfig, Error, InconsistentKeys, RootCertStore, ServerConfig};
use tokio_rustls::rustls;

use super::pem;

/// Sessions with a backend that may be resumed; each is a few kilobytes.
const RESUMABLE: usize = 32;

/// A certificate with its chain, and its key.
#[derive(Clone)]
pub(super) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
}

/// When every certificate of a chain is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// When the last one becomes valid.
    pub from: i64,
    /// When the first one expires.
    pub until: i64,
}

/// How a listener verifies clients.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Trust {
    pub(super) ca: Vec<CertificateDer<'static>>,
    pub(super) crl: Vec<CertificateRevocationListDer<'static>>,
}

/// TLS of a listener, or of the admin port.
#[derive(Clone)]
pub struct ListenerTls {
    chain: Vec<CertificateDer<'static>>,
    trust: Option<Trust>,
    server: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// TLS towards a backend, or from a command to an admin port.
#[derive(Clone)]
pub struct BackendTls {
    ca: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    name: Option<ServerName<'static>>,
    client: Arc<ClientConfig>,
}

impl Identity {
    /// The pair, if the two belong together.
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: Arc<dyn SigningKey>,
    ) -> Result<Self, &'static str> {
        match CertifiedKey::new(chain.clone(), Arc::clone(&key)).keys_match() {
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(
                "is not the key of the certificate in `cert`: one of the two was replaced without the other",
            ),
            Err(Error::InvalidCertificate(_)) => {
                Err("has a certificate in `cert` beside it that cannot be used")
            }
            _ => Ok(Self { chain, key }),
        }
    }

    fn resolver(self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(self.chain, self.key)))
    }
}

impl ListenerTls {
    /// With a certificate, and with the trust by which clients are verified, if they are.
    pub(super) fn new(identity: Identity, trust: Option<Trust>) -> Result<Self, String> {
        let chain = identity.chain.clone();
        let provider = provider();
        let verifier = match &trust {
            Some(Trust { ca, crl }) => {
                let roots = Arc::new(roots(ca)?);
                let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
                let verifier = builder.with_crls(crl.iter().cloned()).build();
                Some(verifier.map_err(|error| format!("cannot be used: {error}"))?)
            }
            None => None,
        };
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| error.to_string())?;
        let mut server = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        }
        .with_cert_resolver(identity.resolver());
        server.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?;
        Ok(Self { chain, trust, server: Arc::new(server), verifier })
    }

    /// What is another than in `old`, in words.
    pub(super) fn change_from(&self, old: &Self) -> Option<&'static str> {
        if self.chain != old.chain {
            Some("certificate replaced")
        } else if self.trust != old.trust {
            Some("client CA or revocations replaced")
        } else {
            None
        }
    }

    /// Whether clients must show a certificate.
    pub fn is_mutual(&self) -> bool {
        self.trust.is_some()
    }

    /// Whether a client that `other` let in is let in by this.
    pub fn trusts_like(&self, other: &Self) -> bool {
        self.trust == other.trust
    }

    /// What a handshake needs.
    pub fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// Whether `chain`, shown when a session began that is resumed now, is still good.
    ///
    /// # Errors
    /// Why it is not.
    pub fn verify_again(&self, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        match (&self.verifier, chain) {
            (None, _) => Ok(()),
            (Some(_), []) => Err(Error::NoCertificatesPresented),
            (Some(verifier), [leaf, rest @ ..]) => {
                verifier.verify_client_cert(leaf, rest, UnixTime::now()).map(drop)
            }
        }
    }

    /// When the whole chain is valid.
    pub fn validity(&self) -> Option<Validity> {
        validity(&self.chain)
    }

    /// When the first certificate of the chain expires, in seconds since 1970.
    pub fn expiry(&self) -> Option<i64> {
        self.validity().map(|validity| validity.until)
    }
}

impl BackendTls {
    /// With the trust by which backends are verified, the name they must have instead of their host's, and a
    /// certificate to show.
    pub(super) fn new(
        ca: Vec<CertificateDer<'static>>,
        name: Option<ServerName<'static>>,
        identity: Option<Identity>,
    ) -> Result<Self, String> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| error.to_string())?.with_root_certificates(roots(&ca)?);
        let chain = identity.as_ref().map_or_else(Vec::new, |identity| identity.chain.clone());
        let mut client = match identity {
            Some(identity) => builder.with_client_cert_resolver(identity.resolver()),
            None => builder.with_no_client_auth(),
        };
        client.resumption = Resumption::in_memory_sessions(RESUMABLE);
        Ok(Self { ca, chain, name, client: Arc::new(client) })
    }

    /// What is another than in `old`, in words.
    pub(super) fn change_from(&self, old: &Self) -> Option<&'static str> {
        if self.ca != old.ca || self.name != old.name {
            Some("CA or name replaced")
        } else if self.chain != old.chain {
            Some("certificate replaced")
        } else {
            None
        }
    }

    /// What a handshake needs.
    pub fn client(&self) -> &Arc<ClientConfig> {
        &self.client
    }

    /// The name that a backend at `address`, a host and a port, must have; `None` if no certificate can have it.
    pub fn name_of(&self, address: &str) -> Option<ServerName<'static>> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        self.name.clone().or_else(|| ServerName::try_from(host.to_owned()).ok())
    }

    /// For servers that are looked up: each must prove the name that was looked up, wherever DNS says it is.
    pub(super) fn known_as(&self, host: &str) -> Self {
        let name = self.name.clone().or_else(|| ServerName::try_from(host.to_owned()).ok());
        Self { name, ..self.clone() }
    }

    /// When the whole chain shown to backends is valid; `None` = none is shown.
    pub fn validity(&self) -> Option<Validity> {
        validity(&self.chain)
    }

    /// When the first certificate of the chain shown to backends expires, in seconds since 1970.
    pub fn expiry(&self) -> Option<i64> {
        self.validity().map(|validity| validity.until)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(ca: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in ca {
        roots.add(certificate.clone()).map_err(|_| "holds a certificate that cannot be a CA's".to_owned())?;
    }
    Ok(roots)
}

fn validity(chain: &[CertificateDer<'_>]) -> Option<Validity> {
    let all = chain.iter().filter_map(pem::validity).map(|(from, until)| Validity { from, until });
    all.reduce(|all, one| Validity { from: all.from.max(one.from), until: all.until.min(one.until) })
}

// A chain has one key, so equal chains mean equal keys.
impl PartialEq for ListenerTls {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.trust == other.trust
    }
}

impl Eq for ListenerTls {}

impl PartialEq for BackendTls {
    fn eq(&self, other: &Self) -> bool {
        self.ca == other.ca && self.chain == other.chain && self.name == other.name
    }
}

impl Eq for BackendTls {}

impl fmt::Debug for ListenerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerTls").field("mutual", &self.trust.is_some()).finish_non_exhaustive()
    }
}

impl fmt::Debug for BackendTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendTls").field("name", &self.name).finish_non_exhaustive()
    }
}
