//! Talking to the admin socket of a running balancer: one request, one answer.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::terminal::plain;
use super::{Credentials, sealed};
use crate::api::status::Failed;
use crate::config::{self, BackendTls};

/// The default address of the admin socket.
pub(super) const DEFAULT: &str = "http://127.0.0.1:9321";
/// The environment variable that holds the admin token itself.
pub(super) const TOKEN: &str = "SESSILE_ADMIN_TOKEN";
/// The error's reason from a port that speaks TLS and got plain HTTP.
pub(super) const PLAIN: &str = "tls";
const TOKEN_FILE_BYTES_MAX: u64 = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A reload with a thousand backends builds a large ring.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// An admin socket, from `--admin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Admin {
    /// Host and port.
    Tcp(String),
    /// Host and port, under TLS.
    Tls(String),
    /// A path.
    Unix(PathBuf),
}

impl FromStr for Admin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = "write http://HOST:PORT, https://HOST:PORT or unix:/PATH";
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let sound = path.starts_with('/') && path.len() > 1;
            return if sound { Ok(Self::Unix(path.into())) } else { Err(FORMS.into()) };
        }
        let sealed = text.strip_prefix("https://");
        let authority = sealed.or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let sound = authority.rsplit_once(':').is_some_and(|(host, port)| {
            let bare = !host.contains(':') || host.starts_with('[') && host.ends_with(']');
            let clean = host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/@?#\\".contains(&byte));
            !host.is_empty() && bare && clean && port.parse::<u16>().is_ok()
        });
        let kind = if sealed.is_some() { Self::Tls } else { Self::Tcp };
        if sound { Ok(kind(authority.to_owned())) } else { Err(FORMS.into()) }
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(authority) => write!(f, "http://{authority}"),
            Self::Tls(authority) => write!(f, "https://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The admin socket of one balancer, with the credentials for it.
#[derive(Clone, Debug)]
pub(super) struct AdminClient {
    admin: Admin,
    authorization: Option<HeaderValue>,
    /// `None` = no CA is named.
    tls: Option<BackendTls>,
}

impl AdminClient {
    /// The socket at `admin`. The token is in the file that `credentials` names, or else in the environment, or there
    /// is none.
    ///
    /// # Errors
    /// A token or a file of TLS that is named and cannot be read.
    pub(super) fn new(admin: Admin, credentials: &Credentials) -> Result<Self, String> {
        let pair = credentials.cert.as_deref().zip(credentials.key.as_deref());
        let tls =
            credentials.ca.as_deref().map(|ca| config::towards_admin(ca, credentials.peer.as_deref(), pair));
        let token = match credentials.token_file.as_deref() {
            Some(file) => {
                let shown = plain(&file.display().to_string());
                let text = read(file).map_err(|error| format!("the token file {shown}: {error}"))?;
                Some((text, format!("the token file {shown}")))
            }
            None => std::env::var(TOKEN).ok().map(|text| (text, TOKEN.to_owned())),
        };
        let header = |(text, whence): (String, String)| {
            let text = text.trim_end_matches(['\r', '\n']);
            let value = HeaderValue::from_str(&format!("Bearer {text}"));
            let mut value =
                value.ok().filter(|_| !text.is_empty()).ok_or(format!("{whence} holds no token"))?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        };
        Ok(Self { admin, authorization: token.map(header).transpose()?, tls: tls.transpose()? })
    }
}

impl fmt::Display for AdminClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.admin.fmt(f)
    }
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Why there is no good answer.
#[derive(Debug)]
pub(super) enum AdminFault {
    /// No answer, or none over HTTP.
    Silent(String),
    /// The balancer answered with an error.
    Refused { status: StatusCode, why: Box<Failed>, body: Bytes },
}

impl fmt::Display for AdminFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(why) => f.write_str(why),
            Self::Refused { status: StatusCode::UNAUTHORIZED, why, .. } => {
                let message = plain(&why.error.message);
                write!(f, "{message}\n  give its file with --token-file, or the token itself in {TOKEN}")
            }
            Self::Refused { why, .. } if why.error.reason == PLAIN => {
                let message = plain(&why.error.message);
                write!(f, "{message}\n  write --admin https://HOST:PORT, and --ca")
            }
            Self::Refused { why, .. } => f.write_str(&plain(&why.error.message)),
        }
    }
}

/// Asks and waits for the answer. Blocks: not for a thread that runs tasks.
///
/// # Errors
/// No answer, or an error.
pub(super) fn ask(admin_client: &AdminClient, method: Method, path: &str) -> Result<Bytes, AdminFault> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| AdminFault::Silent(format!("no runtime: {error}")))?;
    runtime.block_on(async {
        let answer = timeout(ANSWER_TIMEOUT, exchange(admin_client, method, path)).await;
        let late =
            |_| Err(AdminFault::Silent(format!("{admin_client} takes the request but does not answer")));
        answer.unwrap_or_else(late)
    })
}

async fn exchange(admin_client: &AdminClient, method: Method, path: &str) -> Result<Bytes, AdminFault> {
    let admin = &admin_client.admin;
    match admin {
        Admin::Tcp(authority) => {
            let stream = dial(admin, TcpStream::connect(authority)).await?;
            talk(admin_client, stream, authority, method, path).await
        }
        Admin::Tls(authority) => {
            let stream = dial(admin, TcpStream::connect(authority)).await?;
            let tls = admin_client.tls.as_ref().ok_or_else(|| AdminFault::Silent("no CA is named".into()))?;
            let shaking = timeout(CONNECT_TIMEOUT, sealed::shake(tls, authority, stream)).await;
            let sealed = shaking.unwrap_or_else(|_| Err("does not shake hands in time".into()));
            let sealed = sealed.map_err(|why| AdminFault::Silent(format!("{admin} {why}")))?;
            talk(admin_client, sealed, authority, method, path).await
        }
        Admin::Unix(file) => {
            let stream = dial(admin, UnixStream::connect(file)).await?;
            talk(admin_client, stream, "localhost", method, path).await
        }
    }
}

async fn dial<S>(admin: &Admin, dialling: impl Future<Output = io::Result<S>>) -> Result<S, AdminFault> {
    let dialled = timeout(CONNECT_TIMEOUT, dialling).await;
    dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::PermissionDenied => "the socket belongs to the user that runs the balancer",
            _ => {
                "is the balancer running? `address` in the [admin] section of its file says where it listens"
            }
        };
        AdminFault::Silent(format!(
            "nothing answers at {admin}: {error}\n  {why};\n  \
             say so with --admin or SESSILE_ADMIN, such as {DEFAULT} or unix:/run/sessile/admin.sock"
        ))
    })
}

async fn talk(
    admin_client: &AdminClient,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
    method: Method,
    path: &str,
) -> Result<Bytes, AdminFault> {
    let odd = |why: &dyn fmt::Display| {
        AdminFault::Silent(format!(
            "what answers at {admin_client} is not the admin socket of sessile: {why}"
        ))
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| odd(&e))?;
    let carried = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header(HOST, host);
    if let Some(authorization) = &admin_client.authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    let request = request.body(Body::empty()).map_err(|e| odd(&e))?;
    let answer = sender.send_request(request).await.map_err(|error| match sealed::why(&error) {
        Some(why) => AdminFault::Silent(format!("{admin_client} {why}")),
        None => odd(&error),
    })?;
    let status = answer.status();
    let body = to_bytes(Body::new(answer.into_body()), ANSWER_BYTES_MAX).await.map_err(|e| odd(&e))?;
    carried.abort();
    if status.is_success() {
        return Ok(body);
    }
    match serde_json::from_slice(&body) {
        Ok(why) => Err(AdminFault::Refused { status, why, body }),
        Err(_) => Err(odd(&status)),
    }
}

/// `text` as one segment of a path or value of a query.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_urls_are_read() {
        let tcp = |authority: &str| Ok(Admin::Tcp(authority.to_owned()));
        assert_eq!("http://127.0.0.1:9321".parse(), tcp("127.0.0.1:9321"));
        assert_eq!("http://localhost:80/".parse(), tcp("localhost:80"));
        assert_eq!("[::1]:9321".parse(), tcp("[::1]:9321"));
        let unix = Ok(Admin::Unix("/run/s.sock".into()));
        assert_eq!("unix:/run/s.sock".parse(), unix);
        assert_eq!("unix:///run/s.sock".parse(), unix);
        for wrong in [
            "",
            "http://",
            "https://",
            "https://http://a:1",
            "127.0.0.1",
            "http://h:99999",
            "unix:run",
            "unix:",
            "::1:9321",
            "http://a@b:1",
        ] {
            assert!(wrong.parse::<Admin>().is_err(), "{wrong}");
        }
        assert_eq!("https://a.test:9321/".parse(), Ok(Admin::Tls("a.test:9321".to_owned())));
        assert_eq!("https://[::1]:9321".parse(), Ok(Admin::Tls("[::1]:9321".to_owned())));
    }

    #[test]
    fn what_is_no_plain_letter_is_encoded() {
        assert_eq!(encoded("user-7_a.b~"), "user-7_a.b~");
        assert_eq!(encoded("a/b?c=ä d"), "a%2Fb%3Fc%3D%C3%A4%20d");
    }
}
