//! Who may use the admin socket. If there is a token, a request must show it; if `tls` demands certificates, its client
//! must have shown one. Without both, everybody who can reach the socket may, which is then on loopback or protected by
//! the mode of a file.
//!
//! The danger there is a web page in the operator's browser: by a form or a script that posts to loopback, or, to read
//! as well, by a DNS name that is made to point there. So the API refuses a request with a foreign `Origin`, or with a
//! `Host` that could be such a name. With a token any `Host` will do: a foreign page does not know the token, and
//! browsers never add it by themselves. Browsers do add certificates, but not for a name that the balancer's own
//! certificate does not have; so under TLS any `Host` will do as well, but no `http://` `Origin`.
//!
//! Token and trust are looked up for every request, so that new ones hold from their reload on.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use subtle::ConstantTimeEq as _;

use super::status::Failed;
use crate::config::{Admin, AdminAddress, Secret};
use crate::control::Reloader;
use crate::sockets::http::Seal;

/// Browsers say with it from which site a request comes, even where they leave `Origin` out.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What one admin socket checks requests against, beside what the configuration in force demands.
#[derive(Debug)]
pub(super) struct Lock {
    address: AdminAddress,
    reloader: Arc<Reloader>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denied {
    /// A web page of another origin may have sent it.
    Foreign,
    /// It has no token.
    NoToken,
    /// It has a wrong token.
    WrongToken,
    /// Its connection is older than the TLS in force.
    Outdated,
}

/// The rules in force.
#[derive(Clone, Copy)]
struct Rules<'a> {
    /// Where the socket is.
    address: &'a AdminAddress,
    token: Option<&'a Secret>,
    /// The TLS that the request came through, if any.
    seal: Option<&'a Seal>,
    /// Whether TLS demanded a certificate from its client.
    proven: bool,
}

impl Lock {
    /// The guard of the socket at `address`.
    pub(super) fn new(address: AdminAddress, reloader: &Arc<Reloader>) -> Self {
        Self { address, reloader: Arc::clone(reloader) }
    }

    /// Runs `check` with the rules in force.
    fn check(
        &self,
        request: &Request,
        check: impl Fn(Rules<'_>, &Request) -> Result<(), Denied>,
    ) -> Result<(), Box<Response>> {
        let balancer = self.reloader.balancer();
        let config = Arc::clone(&balancer.now().config);
        let rules = Rules::of(&self.address, &config.admin, request.extensions().get());
        rules.and_then(|rules| check(rules, request)).map_err(|denied| {
            balancer.metrics.admin_denied.with_label_values(&[denied.label()]).inc();
            Box::new(denied.response())
        })
    }
}

/// Lets a request through if it has the token, where there is one.
pub(super) async fn token(State(lock): State<Arc<Lock>>, request: Request, next: Next) -> Response {
    match lock.check(&request, has_token) {
        Ok(()) => next.run(request).await,
        Err(refusal) => *refusal,
    }
}

/// Lets a request through if it has the token, where there is one, and no web page of another origin can have sent it.
pub(super) async fn token_and_origin(
    State(lock): State<Arc<Lock>>,
    request: Request,
    next: Next,
) -> Response {
    let both = |rules: Rules<'_>, request: &Request| {
        is_own(rules, request)?;
        has_token(rules, request)
    };
    match lock.check(&request, both) {
        Ok(()) => next.run(request).await,
        Err(refusal) => *refusal,
    }
}

impl<'a> Rules<'a> {
    /// The rules of `admin` for a request that came through `seal`. If its connection is older than the trust in force,
    /// the client has to connect again: it might not be let in any more.
    fn of(address: &'a AdminAddress, admin: &'a Admin, seal: Option<&'a Seal>) -> Result<Self, Denied> {
        let proven = match (&admin.tls, seal) {
            (None, _) => false,
            (Some(now), Some(Seal(then))) if Arc::ptr_eq(now, then) || now.trusts_like(then) => {
                now.is_mutual()
            }
            (Some(_), _) => return Err(Denied::Outdated),
        };
        Ok(Self { address, token: admin.token.as_ref(), seal, proven })
    }
}

impl Denied {
    /// The metric label.
    const fn label(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::NoToken | Self::WrongToken => "token",
            Self::Outdated => "outdated",
        }
    }

    fn response(self) -> Response {
        const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"sessile\"");
        let (status, message) = match self {
            Self::Foreign => (
                StatusCode::FORBIDDEN,
                "the Origin or Host of this request is foreign: call the admin address itself, by its own name or as \
                 127.0.0.1, [::1] or localhost, and not from a page that came from elsewhere",
            ),
            Self::NoToken => (
                StatusCode::UNAUTHORIZED,
                "the admin socket demands the token that `admin.token` in its configuration names: \
                 send \"Authorization: Bearer TOKEN\"",
            ),
            Self::WrongToken => (
                StatusCode::UNAUTHORIZED,
                "this is not the token that `admin.token` in the configuration in force names",
            ),
            Self::Outdated => (
                StatusCode::MISDIRECTED_REQUEST,
                "the TLS of the admin socket has changed since this connection began: ask again on a new one",
            ),
        };
        let reason = match self {
            Self::Foreign => "foreign",
            Self::NoToken | Self::WrongToken => "unauthorized",
            Self::Outdated => "outdated",
        };
        let mut response = (status, Json(Failed::new(reason, message))).into_response();
        match self {
            Self::Foreign => None,
            Self::NoToken | Self::WrongToken => response.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE),
            Self::Outdated => response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close")),
        };
        response
    }
}

fn has_token(rules: Rules<'_>, request: &Request) -> Result<(), Denied> {
    let Some(token) = rules.token else {
        // A socket that had a token or certificates until the last reload, and is just being closed.
        return if rules.address.is_open() && !rules.proven { Err(Denied::NoToken) } else { Ok(()) };
    };
    let shown = match only(request.headers(), &AUTHORIZATION) {
        Ok(Some(value)) => value,
        Ok(None) => return Err(Denied::NoToken),
        Err(()) => return Err(Denied::WrongToken),
    };
    let shown = match shown.split_once(' ') {
        Some((scheme, shown)) if scheme.eq_ignore_ascii_case("bearer") => shown.trim_matches(' '),
        _ => return Err(Denied::NoToken),
    };
    let equal = shown.as_bytes().ct_eq(token.reveal().as_bytes());
    if bool::from(equal) { Ok(()) } else { Err(Denied::WrongToken) }
}

fn is_own(rules: Rules<'_>, request: &Request) -> Result<(), Denied> {
    let headers = request.headers();
    let one = |name| only(headers, name).map_err(|()| Denied::Foreign);
    let (host, origin, site) = (one(&HOST)?, one(&ORIGIN)?, one(&SEC_FETCH_SITE)?);
    // In a request line, an authority outranks the header.
    let host = request.uri().authority().map(|authority| authority.as_str()).or(host);
    let same_origin = origin.is_none_or(|origin| {
        // A page over plain HTTP may come from whoever controls the network, and browsers send certificates for it.
        let safe = |scheme: &str| rules.seal.is_none() || scheme.eq_ignore_ascii_case("https");
        origin.split_once("://").is_some_and(|(scheme, authority)| {
            safe(scheme) && host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
        })
    });
    // "none": the user typed the address.
    let same_site = site.is_none_or(|site| matches!(site, "same-origin" | "none"));
    let host_is_own = match rules.address {
        // A web page cannot reach a Unix socket, and its clients put anything there.
        AdminAddress::Unix(_) => true,
        AdminAddress::Tcp(_) => {
            rules.token.is_some() || rules.seal.is_some() || host.is_some_and(is_loopback)
        }
    };
    if same_origin && same_site && host_is_own { Ok(()) } else { Err(Denied::Foreign) }
}

/// The one value of a header; `None` if it is absent, an error if it is there twice or is not text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| ()),
        (Some(_), Some(_)) => Err(()),
    }
}

/// Whether a `Host` is a loopback address or `localhost`, with any port: tunnels and published ports change it.
fn is_loopback(host: &str) -> bool {
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if digits(port) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Method;

    use super::*;

    fn request(headers: &[(&HeaderName, &str)]) -> Request {
        let mut request = Request::builder().method(Method::POST).uri("/api/v1/reload");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn tcp() -> AdminAddress {
        AdminAddress::Tcp("127.0.0.1:9321".parse().unwrap())
    }

    fn open() -> AdminAddress {
        AdminAddress::Tcp("0.0.0.0:9321".parse().unwrap())
    }

    fn unix() -> AdminAddress {
        AdminAddress::Unix("/run/sessile.sock".into())
    }

    fn rules<'a>(address: &'a AdminAddress, token: Option<&'a Secret>) -> Rules<'a> {
        Rules { address, token, seal: None, proven: false }
    }

    fn own(address: &AdminAddress, headers: &[(&HeaderName, &str)]) -> bool {
        is_own(rules(address, None), &request(headers)).is_ok()
    }

    #[test]
    fn only_hosts_that_no_name_can_be_rebound_to_are_own() {
        for host in [
            "127.0.0.1:9321",
            "127.0.0.1",
            "localhost:80",
            "LocalHost",
            "127.9.9.9:1",
            "[::1]:9321",
            "[::1]",
            "[::ffff:127.0.0.1]:9321",
        ] {
            assert!(own(&tcp(), &[(&HOST, host)]), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9321",
            "localhost.evil.example",
            "localhost.:9321",
            "10.0.0.1:9321",
            "127.0.0.1.evil.example",
            "",
            ":9321",
            "[::2]:9321",
            "[::]:9321",
            "0.0.0.0:9321",
            "::1",
            "[::1",
            "[fe80::1%25lo]:9321",
            "[::ffff:10.0.0.1]:9321",
            "127.0.0.1:9321@evil.example",
            "127.1:9321",
            "2130706433:9321",
        ] {
            assert!(!own(&tcp(), &[(&HOST, host)]), "{host}");
        }
        assert!(!own(&tcp(), &[]), "no Host");
        assert!(own(&unix(), &[(&HOST, "anything")]) && own(&unix(), &[]));
    }

    #[test]
    fn an_origin_must_be_the_host_itself() {
        let host = (&HOST, "localhost:9321");
        assert!(own(&tcp(), &[host, (&ORIGIN, "http://localhost:9321")]));
        assert!(own(&tcp(), &[(&HOST, "[::1]:9321"), (&ORIGIN, "http://[::1]:9321")]));
        for origin in [
            "http://localhost:9322",
            "http://localhost",
            "http://127.0.0.1:9321",
            "http://[::1]:9321",
            "null",
            "",
            "localhost:9321",
            "https://evil.example",
            "http://localhost:9321.evil.example",
            "http://localhost:9321@evil.example",
        ] {
            assert!(!own(&tcp(), &[host, (&ORIGIN, origin)]), "{origin}");
        }
        assert!(!own(&unix(), &[host, (&ORIGIN, "http://evil.example")]));
    }

    #[test]
    fn what_a_browser_says_of_its_page_counts() {
        let host = (&HOST, "localhost:9321");
        for (site, expected) in
            [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false), ("", false)]
        {
            assert_eq!(own(&tcp(), &[host, (&SEC_FETCH_SITE, site)]), expected, "{site}");
        }
    }

    #[test]
    fn a_header_given_twice_is_foreign() {
        let (ours, theirs) = ((&HOST, "127.0.0.1"), (&HOST, "evil.example"));
        assert!(
            !own(&tcp(), &[ours, theirs]) && !own(&tcp(), &[theirs, ours]) && !own(&tcp(), &[ours, ours])
        );
        let origin = (&ORIGIN, "http://127.0.0.1");
        assert!(own(&tcp(), &[ours, origin]) && !own(&tcp(), &[ours, origin, origin]));
    }

    #[test]
    fn with_a_token_any_host_will_do_but_no_other_origin() {
        let token = Secret::new("0123456789abcdef".into());
        let host = (&HOST, "sessile.example:9321");
        let own = |headers: &[_]| is_own(rules(&open(), Some(&token)), &request(headers)).is_ok();
        assert!(own(&[host]) && own(&[host, (&ORIGIN, "http://sessile.example:9321")]));
        assert!(!own(&[host, (&ORIGIN, "http://evil.example")]));
        assert!(!own(&[host, (&SEC_FETCH_SITE, "cross-site")]));
        assert!(is_own(rules(&open(), None), &request(&[host])).is_err());
    }

    #[test]
    fn only_the_whole_token_opens() {
        let token = Secret::new("0123456789abcdef".into());
        let ask = |headers: &[_]| has_token(rules(&tcp(), Some(&token)), &request(headers));
        let show = |value| ask(&[(&AUTHORIZATION, value)]);
        for good in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef", "BEARER  0123456789abcdef "] {
            assert_eq!(show(good), Ok(()), "{good}");
        }
        for wrong in [
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer ",
            "Bearer 0123456789abcdef, 0123456789abcdef",
        ] {
            assert_eq!(show(wrong), Err(Denied::WrongToken), "{wrong}");
        }
        for other in ["", "0123456789abcdef", "Basic 0123456789abcdef", "Bearer0123456789abcdef"] {
            assert_eq!(show(other), Err(Denied::NoToken), "{other}");
        }
        let good = (&AUTHORIZATION, "Bearer 0123456789abcdef");
        assert_eq!(ask(&[good, good]), Err(Denied::WrongToken));
        assert_eq!(ask(&[]), Err(Denied::NoToken));
    }

    #[test]
    fn an_open_socket_without_a_token_serves_nobody() {
        assert_eq!(has_token(rules(&open(), None), &request(&[])), Err(Denied::NoToken));
        assert_eq!(has_token(rules(&tcp(), None), &request(&[])), Ok(()));
        assert_eq!(has_token(rules(&unix(), None), &request(&[])), Ok(()));
    }
}
