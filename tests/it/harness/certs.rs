//! Certificates, good and bad, and what clients show of them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio_rustls::rustls;

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub pem: String,
}

/// A folder with the certificates of a balancer called `localhost`, and who signs.
pub struct Office {
    pub folder: TempDir,
    pub ca: Authority,
    /// A client's.
    pub paper: Paper,
}

impl Office {
    pub fn new() -> Self {
        let (folder, ca) = (TempDir::new().unwrap(), Authority::new("good"));
        ca.paper("localhost", 1).write(folder.path(), "server");
        let paper = ca.paper("client", 2);
        paper.write(folder.path(), "client");
        fs::write(folder.path().join("ca.pem"), &ca.pem).unwrap();
        fs::write(folder.path().join("crl.pem"), ca.crl(&[])).unwrap();
        Self { folder, ca, paper }
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// `{ one = "…/FILE", … }`.
    pub fn tls(&self, files: &[(&str, &str)]) -> String {
        let keys: Vec<_> =
            files.iter().map(|(key, file)| format!("{key} = \"{}\"", self.path(file))).collect();
        format!("{{ {} }}", keys.join(", "))
    }

    pub fn server(&self) -> String {
        self.tls(&[("cert", "server.pem"), ("key", "server.key")])
    }

    pub fn mutual(&self) -> String {
        self.tls(&[
            ("cert", "server.pem"),
            ("key", "server.key"),
            ("client_ca", "ca.pem"),
            ("crl", "crl.pem"),
        ])
    }

    pub fn client(&self) -> Arc<ClientConfig> {
        self.ca.client(Some(&self.paper), &[&TLS13])
    }
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Paper {
    pub cert: String,
    pub key: String,
    serial: u64,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for `name`.
    pub fn paper(&self, name: &str, serial: u64) -> Paper {
        self.until(name, serial, 2999)
    }

    /// A certificate that counted up to the beginning of a year.
    pub fn until(&self, name: &str, serial: u64, year: i32) -> Paper {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Paper { cert, key: key.serialize_pem(), serial }
    }

    /// A list that revokes these.
    pub fn crl(&self, revoked: &[&Paper]) -> String {
        let revoke = |paper: &&Paper| RevokedCertParams {
            serial_number: SerialNumber::from(paper.serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2999, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(revoke).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// What a client believes and shows.
    pub fn client(
        &self,
        shown: Option<&Paper>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots);
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(paper) => {
                let chain = vec![CertificateDer::from_pem_slice(paper.cert.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(paper.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

impl Paper {
    /// Writes it as `NAME.pem` and `NAME.key`.
    pub fn write(&self, folder: &Path, name: &str) {
        fs::write(folder.join(format!("{name}.pem")), &self.cert).unwrap();
        fs::write(folder.join(format!("{name}.key")), &self.key).unwrap();
    }
}
