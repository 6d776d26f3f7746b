//! The samples of `conf/` in a folder that has the certificates they name, and TLS files that are wrong.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use tempfile::TempDir;

use super::*;

/// A copy of `conf/`, with a CA, its revocation list, and the certificates of a server and of a client.
pub(super) fn conf_with_certs() -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let tls = folder.path().join("tls");
    fs::create_dir(&tls).unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    fs::write(tls.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        fs::write(tls.join(format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        fs::write(tls.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let crl = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2999, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    fs::write(tls.join("crl.pem"), crl.signed_by(&issuer).unwrap().pem().unwrap()).unwrap();
    folder
}

/// What is wrong with [`SOUND`] and this more, beside the certificates.
fn told(folder: &TempDir, more: &str) -> Vec<String> {
    let text = format!("{more}\n{SOUND}");
    let path = folder.path().join("sessile.toml");
    match parse_in(&text, "o", &path, &environment) {
        Ok(_) => Vec::new(),
        Err(problems) => {
            assert!(problems.iter().all(|problem| problem.position.is_some()), "{problems}");
            problems.iter().map(|problem| problem.message.clone()).collect()
        }
    }
}

#[test]
fn files_of_tls_that_cannot_be_used_say_why() {
    let folder = conf_with_certs();
    let tls = folder.path().join("tls");
    let whole = fs::read_to_string(tls.join("server.pem")).unwrap();
    fs::write(tls.join("half.pem"), &whole[..whole.len() / 2]).unwrap();
    fs::write(tls.join("empty.pem"), "").unwrap();
    let cases = [
        ("ca = 'tls/ca.pem', cert = 'tls/client.pem', key = 'tls/client.key'", vec![]),
        (
            "ca = 'tls/none.pem'",
            vec!["`upstream.tls.ca` takes the file \"tls/none.pem\", which does not exist"],
        ),
        (
            "ca = 'tls/half.pem'",
            vec![
                "`upstream.tls.ca` takes the file \"tls/half.pem\", which ends before its last section does: it is not whole",
            ],
        ),
        (
            "ca = 'tls/empty.pem'",
            vec!["`upstream.tls.ca` takes the file \"tls/empty.pem\", which holds no certificate"],
        ),
        (
            "ca = 'tls/client.key'",
            vec!["`upstream.tls.ca` takes the file \"tls/client.key\", which holds no certificate"],
        ),
        ("name = 'x'", vec!["no `ca` in this [upstream.tls]"]),
        (
            "ca = 'tls/ca.pem', cert = 'tls/client.pem'",
            vec!["`upstream.tls.cert` needs `key`: a certificate is shown with its key"],
        ),
        (
            "ca = 'tls/ca.pem', name = 'a b'",
            vec!["`upstream.tls.name` must be a host name or an IP address, not \"a b\""],
        ),
        (
            "ca = 'tls/ca.pem', cert = 'tls/client.pem', key = 'tls/server.key'",
            vec![
                "`upstream.tls.key` is not the key of the certificate in `cert`: one of the two was replaced without the other",
            ],
        ),
        (
            "ca = 'tls/ca.pem', cert = 'tls/client.pem', key = 'tls/client.pem'",
            vec!["`upstream.tls.key` takes the file \"tls/client.pem\", which holds no private key"],
        ),
        ("ca = 'tls/ca.pem', crl = 'tls/crl.pem'", vec!["unknown key `crl` in [upstream.tls]"]),
    ];
    for (written, expected) in cases {
        assert_eq!(told(&folder, &format!("[upstream]\ntls = {{ {written} }}")), expected, "{written}");
    }
}

#[test]
fn tls_that_demands_certificates_is_a_lock_of_the_admin_port() {
    let folder = conf_with_certs();
    let pair = "cert = 'tls/server.pem', key = 'tls/server.key'";
    let open = |tls: &str| told(&folder, &format!("[admin]\naddress = '0.0.0.0:9321'\ntls = {{ {tls} }}"));
    assert_eq!(open(&format!("{pair}, client_ca = 'tls/ca.pem', crl = 'tls/crl.pem'")), [""; 0]);
    let alone = open(pair);
    assert!(alone.len() == 1 && alone[0].starts_with("`admin.address` must be a loopback"), "{alone:?}");
    // That a CA cannot be had is one problem, not two.
    let lost = open(&format!("{pair}, client_ca = 'tls/none.pem'"));
    assert_eq!(lost, ["`admin.tls.client_ca` takes the file \"tls/none.pem\", which does not exist"]);
    let near = |address: &str| told(&folder, &format!("[admin]\naddress = '{address}'\ntls = {{ {pair} }}"));
    assert_eq!(near("127.0.0.1:9321"), [""; 0]);
    let load = |tls: &str| {
        let path = folder.path().join("sessile.toml");
        parse_in(&format!("[admin]\n{tls}\n{SOUND}"), "o", &path, &environment).unwrap()
    };
    let (before, after) = (load(""), load(&format!("tls = {{ {pair} }}")));
    assert_eq!(
        diff(&before, &after).iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["admin: TLS begun"]
    );
    let path = near("/run/sessile.sock");
    assert_eq!(path, ["`admin.tls` needs an IP address in `admin.address`, not the path of a Unix socket"]);
    assert_eq!(open("cert = 'tls/server.pem'").len(), 2, "no key, and open");
}

#[test]
fn every_file_that_is_named_is_known_even_if_it_is_not_there() {
    let folder = conf_with_certs();
    for lost in ["server.key", "client.key"] {
        fs::remove_file(folder.path().join("tls").join(lost)).unwrap();
    }
    let named = |conf: &str| -> Vec<String> {
        let files = files(&folder.path().join(conf));
        files.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(named("mtls.toml"), ["ca.pem", "crl.pem", "server.key", "server.pem"]);
    assert_eq!(named("sidecar.toml"), ["ca.pem", "client.key", "client.pem"]);
}

#[test]
fn who_a_proxy_is_has_to_be_said() {
    let with = |written: &str| {
        let text = SOUND.replace("[[backend]]", &format!("proxy_protocol = {written}\n[[backend]]"));
        parsed(&text).map_err(|problems| problems.iter().map(|p| p.message.clone()).collect::<Vec<_>>())
    };
    assert_eq!(with("false").unwrap().listeners[0].proxy_protocol, None);
    let proxies =
        with("{ trusted = ['10.0.0.0/8', '::1'] }").unwrap().listeners[0].proxy_protocol.clone().unwrap();
    for (ip, trusted) in
        [("10.9.9.9", true), ("::ffff:10.9.9.9", true), ("::1", true), ("::2", false), ("11.0.0.1", false)]
    {
        assert_eq!(proxies.trust(ip.parse().unwrap()), trusted, "{ip}");
    }
    let cases = [
        ("true", "`listener.proxy_protocol` must be `false` or a table, not a boolean"),
        ("{ }", "no `trusted` in this [listener.proxy_protocol]"),
        ("{ trusted = [] }", "`listener.proxy_protocol.trusted` must name at least one network"),
        (
            "{ trusted = ['10.0.0.0/33'] }",
            "`listener.proxy_protocol.trusted` must hold networks such as \"10.0.0.0/8\" or addresses, not \"10.0.0.0/33\"",
        ),
    ];
    for (written, expected) in cases {
        assert_eq!(with(written).unwrap_err(), [expected], "{written}");
    }
}

#[test]
fn who_resumes_a_session_is_held_to_what_holds_now() {
    use tokio_rustls::rustls::Error;
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    let (folder, elsewhere) = (conf_with_certs(), conf_with_certs());
    let tls = load(&folder.path().join("mtls.toml")).unwrap().listeners[0].tls.clone().unwrap();
    let shown =
        |folder: &TempDir| [CertificateDer::from_pem_file(folder.path().join("tls/client.pem")).unwrap()];
    tls.verify_again(&shown(&folder)).unwrap();
    assert_eq!(tls.verify_again(&[]), Err(Error::NoCertificatesPresented));
    assert!(matches!(tls.verify_again(&shown(&elsewhere)), Err(Error::InvalidCertificate(_))));
}
