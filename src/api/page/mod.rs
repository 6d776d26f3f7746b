//! The status page: one file that makes requests only to the socket it came from.
//!
//! It is put together at start from the parts in this folder. Its content security policy has the hashes of its own
//! style and script, so a browser runs nothing else, whatever text comes from a server, a file or a session ID. It
//! holds no data: everybody may load it, and its requests to the API are guarded like any other.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use axum::http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const FRAME: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = concat!(include_str!("words.js"), include_str!("fleet.js"), include_str!("main.js"));

/// The page and its headers.
static PAGE: LazyLock<(String, HeaderMap)> = LazyLock::new(|| {
    let html = FRAME.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    let fixed = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let fixed = fixed.map(|(name, value)| (name, HeaderValue::from_static(value)));
    let mut headers: HeaderMap = fixed.into_iter().collect();
    // Should the policy not be a valid header value, the page must not be served without one: then no script runs at all.
    let closed = HeaderValue::from_static("default-src 'none'");
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_str(&policy).unwrap_or(closed));
    (html, headers)
});

/// `GET /`.
pub(super) async fn page() -> Response {
    let (html, headers) = &*PAGE;
    (headers.clone(), html.as_str()).into_response()
}

fn hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(digest(&SHA256, text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_the_pages_own_parts_and_nothing_else() {
        let (html, headers) = &*PAGE;
        let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        let part = |tag: &str| {
            let (_, rest) = html.split_once(&format!("<{tag}>")).unwrap();
            rest.split_once(&format!("</{tag}>")).unwrap().0
        };
        for (directive, tag) in [("script-src", "script"), ("style-src", "style")] {
            assert!(policy.contains(&format!("{directive} '{}'", hash(part(tag)))), "{tag}");
            assert_eq!(html.matches(&format!("<{tag}")).count(), 1, "{tag}");
        }
    }

    #[test]
    fn nothing_in_it_leads_elsewhere_or_makes_markup_of_text() {
        let (html, _) = &*PAGE;
        for way in
            ["src=", "@import", "url(", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("]
        {
            assert!(!html.contains(way), "{way}");
        }
        let links = html
            .match_indices("http")
            .filter(|(at, _)| !html[*at..].starts_with("http://www.w3.org/2000/svg"));
        let elsewhere: Vec<_> =
            links.filter(|(at, _)| html[*at..].contains("://")).map(|(at, _)| &html[at..at + 40]).collect();
        let elsewhere: Vec<_> = elsewhere
            .into_iter()
            .filter(|text| text.starts_with("http://") || text.starts_with("https://"))
            .collect();
        assert_eq!(elsewhere, [""; 0]);
    }

    #[test]
    fn a_known_text_has_its_known_hash() {
        assert_eq!(hash(""), "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    }
}
