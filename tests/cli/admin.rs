//! The admin API, over real sockets.

use std::net::{Ipv4Addr, TcpListener as StdTcpListener};
use std::os::unix::fs::PermissionsExt as _;

use sessile::fleet::Health;
use sessile::sockets::http::HEAD_TIMEOUT;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use crate::fleet::{ANY, Fleet, exchange, request, send, send_unix, text};

/// A backend without what differs from one question to the next.
fn timeless(backend: &serde_json::Value) -> serde_json::Value {
    let mut backend = backend.clone();
    for field in ["probe_seconds", "health_seconds", "error_seconds", "restart_seconds"] {
        assert!(backend.as_object_mut().unwrap().remove(field).is_some(), "{field}");
    }
    backend
}

#[tokio::test]
async fn status_has_every_documented_field() {
    let fleet = Fleet::start(2).await;
    let status = fleet.get("/api/v1/status").await;
    assert_eq!(status.status, 200);
    assert!(status.head.contains("content-type: application/json"), "{}", status.head);
    assert!(status.head.contains("cache-control: no-store"), "{}", status.head);
    let mut json = status.json();
    let backends = fleet.get("/api/v1/backends").await.json()["backends"].clone();
    for (at, backend) in backends.as_array().unwrap().iter().enumerate() {
        assert_eq!(timeless(&json["backends"][at]), timeless(backend));
    }
    let listener = fleet.listener().await.to_string();
    assert_eq!(json["listeners"][0]["bound"], listener);
    assert_eq!(json["config"]["file"], fleet.path().display().to_string());
    for (at, fake_server) in fleet.standins.iter().enumerate() {
        assert_eq!(json["backends"][at]["address"], fake_server.address().to_string());
        assert!(json["backends"][at]["probe_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    }
    assert!(json["uptime_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    // What differs from run to run is out; the rest is the contract, to the letter.
    assert_eq!(json["pid"], std::process::id());
    json["pid"] = 0.into();
    json["uptime_seconds"] = 0.into();
    json["listeners"][0]["bound"] = "BOUND".into();
    json["config"]["file"] = "FILE".into();
    json["config"]["last_reload"]["at"] = "TIME".into();
    for backend in json["backends"].as_array_mut().unwrap() {
        assert_eq!(backend["server"], backend["address"]);
        backend["address"] = "ADDRESS".into();
        backend["server"] = "ADDRESS".into();
        for seconds in ["probe_seconds", "health_seconds"] {
            assert!(backend[seconds].as_f64().is_some_and(|seconds| seconds > 0.0), "{backend}");
            backend[seconds] = 0.into();
        }
    }
    insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap());
}

#[tokio::test]
async fn metrics_health_and_readiness_are_told() {
    let fleet = Fleet::start(1).await;
    let metrics = fleet.get("/metrics").await;
    assert!(
        metrics.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{}",
        metrics.head
    );
    assert!(metrics.body.contains("\nsessile_backend_up{backend=\"cli-1\"} 1\n"), "{}", metrics.body);
    let tasks =
        metrics.body.lines().find_map(|line| line.strip_prefix("sessile_tasks ")?.parse::<usize>().ok());
    assert!(tasks > Some(0), "a server is at work: {}", metrics.body);
    assert_eq!(fleet.get("/healthz").await.status, 200);
    assert_eq!(fleet.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn no_backend_up_is_not_ready_and_says_why() {
    let fleet = Fleet::start_with(1, ANY, "[health]\ninterval = '200ms'\ntimeout = '200ms'\nfall = 5").await;
    fleet.standins[0].refuse(true).await.unwrap();
    fleet.standins[0].close_connections(sessile::fake_server::Cut::Fin).await;
    fleet.until(|health| health == Health::Down).await;
    let ready = fleet.get("/readyz").await;
    assert_eq!((ready.status, ready.reason().as_str()), (503, "no_backend"));
    assert_eq!(fleet.get("/healthz").await.status, 200);
    let status = fleet.get("/api/v1/status").await.json();
    assert_eq!(status["ready"], false);
    assert_eq!(status["backends"][0]["health"], "down");
    assert_eq!(status["backends"][0]["suspect"], true);
    assert!(status["backends"][0]["error"].is_string());
    let route = fleet.get("/api/v1/route?session=a").await;
    assert_eq!((route.status, route.reason().as_str()), (503, "no_backend"));
}

#[tokio::test]
async fn probes_are_remembered_the_failed_ones_too() {
    let fleet = Fleet::start_with(1, ANY, "[health]\ninterval = '200ms'\ntimeout = '200ms'\nfall = 5").await;
    let probes = fleet.get("/api/v1/probes").await.json();
    assert_eq!(probes["backends"][0]["address"], fleet.standins[0].address().to_string());
    let first = probes["backends"][0]["probes"].as_array().unwrap().clone();
    assert!(!first.is_empty() && first.iter().any(|took| took.as_f64().is_some_and(|took| took > 0.0)));
    fleet.standins[0].refuse(true).await.unwrap();
    fleet.standins[0].close_connections(sessile::fake_server::Cut::Fin).await;
    fleet.until(|health| health == Health::Down).await;
    let probes = fleet.get("/api/v1/probes").await.json();
    assert!(
        probes["backends"][0]["probes"].as_array().unwrap().contains(&serde_json::Value::Null),
        "{probes}"
    );
}

#[tokio::test]
async fn status_counts_placements_errors_and_bytes() {
    let fleet = Fleet::start(1).await;
    let client = fleet.attach("a").await;
    drop(client);
    fleet.balancer().tasks.close();
    fleet.balancer().tasks.wait().await;
    let status = fleet.get("/api/v1/status").await.json();
    assert_eq!((&status["placements"]["hash"], &status["placements"]["owner"]), (&1.into(), &0.into()));
    assert_eq!(status["errors"]["no_backend"], 0);
    let backend = &status["backends"][0];
    for field in ["bytes_to_backend", "bytes_to_client"] {
        assert!(backend[field].as_u64() > Some(50), "{backend}");
    }
}

#[tokio::test]
async fn the_page_is_for_everybody_and_holds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "an-admin-token-for-tests").unwrap();
    let fleet = Fleet::start_with(1, ANY, &format!("token = {{ file = '{}' }}", file.display())).await;
    let page = fleet.get("/").await;
    assert_eq!(page.status, 200);
    for header in
        ["content-type: text/html", "content-security-policy: default-src 'none'", "x-frame-options: deny"]
    {
        assert!(page.head.contains(header), "{}", page.head);
    }
    assert!(!page.body.contains("cli-1"), "it holds no data");
    assert_eq!(fleet.post("/").await.status, 405);
    assert_eq!(fleet.get("/api/v1/probes").await.status, 401);
}

#[tokio::test]
async fn route_says_where_and_why() {
    let fleet = Fleet::start(3).await;
    let route = fleet.get("/api/v1/route?session=user%2D7-chat").await;
    assert_eq!(route.status, 200);
    let route = route.json();
    assert_eq!((&route["session"], &route["reason"]), (&"user-7-chat".into(), &"hash".into()));
    assert!(
        route["turn"].is_null() && route["unused_seconds"].is_null(),
        "nobody is attached to it: {route}"
    );
    assert!(["cli-1", "cli-2", "cli-3"].contains(&route["backend"].as_str().unwrap()));
    for path in ["/api/v1/route", "/api/v1/route?session=", "/api/v1/route?session=a&session=b"] {
        let answer = fleet.get(path).await;
        assert_eq!((answer.status, answer.reason().as_str()), (400, "bad_request"), "{path}");
    }
    let long = fleet.get(&format!("/api/v1/route?session={}", "a".repeat(257))).await;
    assert_eq!(long.status, 400);
}

#[tokio::test]
async fn operators_words_show_beside_the_files() {
    let fleet = Fleet::start(2).await;
    for word in ["drain", "maint", "ready"] {
        let told = fleet.post(&format!("/api/v1/backends/cli-2/{word}")).await;
        assert_eq!(told.status, 200);
        let status = fleet.get("/api/v1/status").await.json();
        assert_eq!(timeless(&status["backends"][1]), timeless(&told.json()));
        assert_eq!(told.json()["state"], word);
        assert_eq!(told.json()["file_state"], "ready");
    }
    let unknown = fleet.post("/api/v1/backends/cli-9/drain").await;
    assert_eq!((unknown.status, unknown.reason().as_str()), (404, "unknown_backend"));
    let wrong = fleet.post("/api/v1/backends/cli-1/explode").await;
    assert_eq!((wrong.status, wrong.reason().as_str()), (404, "not_found"));
    let got = fleet.get("/api/v1/backends/cli-1/drain").await;
    assert_eq!((got.status, got.reason().as_str()), (405, "wrong_method"));
}

#[tokio::test]
async fn a_reload_is_asked_for_and_answered() {
    let fleet = Fleet::start(2).await;
    let sound = text(&fleet.standins, ANY, "[placement]\nstorage = 'local'");
    std::fs::write(fleet.path(), sound).unwrap();
    // The watcher may have been faster: then nothing is left to change.
    let reloaded = fleet.post("/api/v1/reload").await;
    assert_eq!(reloaded.status, 200);
    assert!(reloaded.json()["generation"].as_u64() >= Some(2));
    assert!(reloaded.json()["changes"].is_array());
    assert_eq!(fleet.get("/api/v1/status").await.json()["placement"]["storage"], "local");
}

#[tokio::test]
async fn a_removed_backend_shows_while_it_carries_something() {
    let fleet = Fleet::start(2).await;
    let client = fleet.attach("a").await;
    let home = fleet.get("/api/v1/route?session=a").await.json();
    assert_eq!(home["reason"], "owner");
    assert!(home["turn"].is_null() && home["unused_seconds"].is_u64(), "{home}");
    let other = fleet.standins.iter().find(|fake_server| home["backend"] != fake_server.name()).unwrap();
    let file = text(&[], ANY, "");
    let file = format!("{file}[[backend]]\nname = '{}'\naddress = '{}'\n", other.name(), other.address());
    std::fs::write(fleet.path(), file).unwrap();
    assert_eq!(fleet.post("/api/v1/reload").await.status, 200);
    let backends = fleet.get("/api/v1/backends").await.json();
    let leaving = &backends["backends"][1];
    assert_eq!((&leaving["name"], &leaving["leaving"]), (&home["backend"], &true.into()));
    assert_eq!((&leaving["connections"], &leaving["sessions"]), (&1.into(), &1.into()));
    assert!(leaving["state"].is_null() && leaving["file_state"].is_null() && leaving["weight"].is_null());
    let stays = fleet.get("/api/v1/route?session=a").await.json();
    let place = |route: &serde_json::Value| (route["backend"].clone(), route["reason"].clone());
    assert_eq!(place(&stays), place(&home), "it stays where it is");
    drop(client);
}

#[tokio::test]
async fn a_refused_file_is_explained_and_changes_nothing() {
    let fleet = Fleet::start(1).await;
    let broken = text(&fleet.standins, ANY, "[health]\nintervall = '1s'\nrise = 0");
    std::fs::write(fleet.path(), broken).unwrap();
    let refused = fleet.post("/api/v1/reload").await;
    assert_eq!((refused.status, refused.reason().as_str()), (422, "config"));
    insta::assert_snapshot!(serde_json::to_string_pretty(&refused.json()["problems"]).unwrap());
    let status = fleet.get("/api/v1/status").await.json();
    assert_eq!(status["generation"], 1);
    assert_eq!(status["config"]["last_reload"]["ok"], false);
    assert_eq!(status["config"]["last_reload"]["problems"], refused.json()["problems"]);
}

#[tokio::test]
async fn an_admin_socket_that_cannot_be_bound_changes_nothing() {
    let fleet = Fleet::start(1).await;
    let taken = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let metrics =
        format!("metrics_address = '{}'\n[placement]\nstorage = 'local'", taken.local_addr().unwrap());
    std::fs::write(fleet.path(), text(&fleet.standins, ANY, &metrics)).unwrap();
    let refused = fleet.post("/api/v1/reload").await;
    assert_eq!((refused.status, refused.reason().as_str()), (422, "config"));
    assert!(refused.json()["problems"][0]["message"].as_str().unwrap().contains("cannot listen on"));
    let status = fleet.get("/api/v1/status").await.json();
    assert_eq!((&status["generation"], &status["placement"]["storage"]), (&1.into(), &"auto".into()));
}

#[tokio::test]
async fn admin_sockets_come_and_go_with_the_configuration() {
    let fleet = Fleet::start(1).await;
    let before = fleet.admin().await;
    let listener = fleet.listener().await;
    std::fs::write(fleet.path(), text(&fleet.standins, ANY, &format!("metrics_address = '{ANY}'"))).unwrap();
    assert_eq!(fleet.post("/api/v1/reload").await.status, 200);
    assert_eq!(fleet.admin().await, before, "an unchanged address keeps its socket");
    let metrics = fleet.metrics().await;
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(request(metrics, "GET", path).await.status, 200, "{path}");
    }
    for (method, path) in
        [("GET", "/api/v1/status"), ("POST", "/api/v1/reload"), ("POST", "/api/v1/backends/cli-1/drain")]
    {
        let answer = request(metrics, method, path).await;
        assert_eq!((answer.status, answer.reason().as_str()), (404, "not_found"), "{method} {path}");
    }
    let path = fleet.path().with_file_name("admin.sock");
    let mut begun = TcpStream::connect(before).await.unwrap();
    begun.write_all(b"POST /api/v1/reload HTTP/1.1\r\n").await.unwrap();
    // Whoever watches the file may be faster than this request: it has begun before, and one that came later is answered.
    assert_eq!(request(before, "GET", "/healthz").await.status, 200);
    std::fs::write(fleet.path(), text(&fleet.standins, path.to_str().unwrap(), "")).unwrap();
    let last = exchange(begun, "Host: localhost\r\nConnection: close\r\n\r\n").await;
    assert_eq!(last.status, 200, "the answer still comes through the socket that goes away");
    assert_eq!(fleet.listener().await, listener);
    assert_eq!(
        send_unix(&path, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.status,
        200
    );
}

#[tokio::test]
async fn a_unix_socket_is_its_users_alone_and_goes_with_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let fleet = Fleet::start_with(1, path.to_str().unwrap(), "").await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let told = "POST /api/v1/backends/cli-1/drain HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n";
    assert_eq!(send_unix(&path, told).await.json()["state"], "drain");
    fleet.server.drain(std::future::pending()).await;
    assert!(!path.exists());
    assert!(UnixStream::connect(&path).await.is_err());
}

#[tokio::test]
async fn what_a_web_page_could_send_changes_nothing() {
    let fleet = Fleet::start(1).await;
    let admin = fleet.admin().await;
    for head in [
        format!("Host: {admin}\r\nOrigin: http://evil.example\r\n"),
        format!("Host: {admin}\r\nOrigin: null\r\n"),
        "Host: evil.example\r\n".to_owned(),
        "Host: evil.example\r\nOrigin: http://evil.example\r\n".to_owned(),
    ] {
        for path in ["/api/v1/backends/cli-1/maint", "/api/v1/reload", "/nowhere"] {
            let sent = format!("POST {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n");
            let answer = send(admin, &sent).await;
            assert_eq!((answer.status, answer.reason().as_str()), (403, "foreign"), "{sent}");
        }
    }
    assert_eq!(fleet.get("/api/v1/status").await.json()["backends"][0]["state"], "ready");
    let own = format!("Host: {admin}\r\nOrigin: http://{admin}\r\n");
    let sent = format!("POST /api/v1/backends/cli-1/maint HTTP/1.1\r\n{own}Connection: close\r\n\r\n");
    assert_eq!(send(admin, &sent).await.status, 200);
}

#[tokio::test]
async fn a_token_opens_everything_and_nothing_opens_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "an-admin-token-for-tests\n").unwrap();
    let token = format!("token = {{ file = '{}' }}", file.display());
    // The wildcard is what needs a token; it is reached on loopback.
    let fleet = Fleet::start_with(1, "0.0.0.0:0", &token).await;
    let port = fleet.admin().await.port();
    let admin = (Ipv4Addr::LOCALHOST, port).into();
    let ask = async |method: &str, path: &str, more: &str| {
        let head = format!("Host: sessile.example\r\n{more}Connection: close\r\n\r\n");
        send(admin, &format!("{method} {path} HTTP/1.1\r\n{head}")).await
    };
    let reads = ["/metrics", "/healthz", "/readyz", "/api/v1/status", "/api/v1/backends", "/nowhere"];
    let writes = ["/api/v1/reload", "/api/v1/backends/cli-1/maint", "/nowhere"];
    let all = || reads.map(|path| ("GET", path)).into_iter().chain(writes.map(|path| ("POST", path)));
    for (method, path) in all() {
        for wrong in
            ["", "Authorization: Bearer an-admin-token-for-test\r\n", "Authorization: Basic YTpi\r\n"]
        {
            let answer = ask(method, path, wrong).await;
            assert_eq!((answer.status, answer.reason().as_str()), (401, "unauthorized"), "{method} {path}");
            assert!(answer.head.contains("www-authenticate: bearer"), "{}", answer.head);
        }
    }
    let good = "Authorization: Bearer an-admin-token-for-tests\r\n";
    assert_eq!(ask("GET", "/api/v1/status", good).await.json()["backends"][0]["state"], "ready");
    for (method, path) in all().filter(|(_, path)| *path != "/nowhere") {
        assert_eq!(ask(method, path, good).await.status, 200, "{method} {path}");
    }
    let foreign = ask("POST", "/api/v1/reload", &format!("{good}Origin: http://evil.example\r\n")).await;
    assert_eq!((foreign.status, foreign.reason().as_str()), (403, "foreign"));
    let metrics = ask("GET", "/metrics", good).await.body;
    assert!(metrics.contains("sessile_admin_denied_total{why=\"token\"} 27\n"), "{metrics}");
    assert!(metrics.contains("sessile_admin_denied_total{why=\"foreign\"} 1\n"), "{metrics}");
    assert!(!metrics.contains("an-admin-token"), "{metrics}");
    // Another token holds from its reload on, on the socket that is there.
    std::fs::write(&file, "another-token-for-tests\n").unwrap();
    assert_eq!(ask("POST", "/api/v1/reload", good).await.status, 200);
    assert_eq!(ask("GET", "/api/v1/status", good).await.status, 401);
    assert_eq!(
        ask("GET", "/api/v1/status", "Authorization: Bearer another-token-for-tests\r\n").await.status,
        200
    );
}

#[tokio::test]
async fn a_page_of_a_rebound_name_reads_nothing() {
    let fleet = Fleet::start(1).await;
    let admin = fleet.admin().await;
    let ask = async |path: &str| {
        send(admin, &format!("GET {path} HTTP/1.1\r\nHost: evil.example:9321\r\nConnection: close\r\n\r\n"))
            .await
    };
    for path in ["/api/v1/status", "/api/v1/backends", "/api/v1/route?session=a", "/nowhere"] {
        let answer = ask(path).await;
        assert_eq!((answer.status, answer.reason().as_str()), (403, "foreign"), "{path}");
    }
    // Scrapers and probes come by any name.
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(ask(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_form_of_another_page_posts_in_vain() {
    let fleet = Fleet::start(1).await;
    let admin = fleet.admin().await;
    for more in [
        format!("Origin: http://evil.example\r\nHost: {admin}\r\n"),
        // Browsers hide the origin of a page in a sandbox, and old ones that of every form.
        format!("Origin: null\r\nHost: {admin}\r\n"),
        format!("Sec-Fetch-Site: cross-site\r\nHost: {admin}\r\n"),
        format!("Sec-Fetch-Site: same-site\r\nHost: {admin}\r\n"),
    ] {
        let form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n";
        let path = "/api/v1/backends/cli-1/maint";
        let sent = format!("POST {path} HTTP/1.1\r\n{more}{form}Connection: close\r\n\r\na=b");
        let answer = send(admin, &sent).await;
        assert_eq!((answer.status, answer.reason().as_str()), (403, "foreign"), "{sent}");
    }
    assert_eq!(fleet.get("/api/v1/status").await.json()["backends"][0]["state"], "ready");
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let fleet = Fleet::start(1).await;
    let admin = fleet.admin().await;
    let begun = std::time::Instant::now();
    let mut stream = TcpStream::connect(admin).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ")
        .await
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(begun.elapsed() < HEAD_TIMEOUT * 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_unknown_page_lists_the_routes() {
    let fleet = Fleet::start(1).await;
    for path in ["/nowhere", "/api/v1", "/index.html"] {
        let answer = fleet.get(path).await;
        assert_eq!((answer.status, answer.reason().as_str()), (404, "not_found"));
        let routes = answer.json()["routes"].clone();
        assert!(routes.as_array().unwrap().contains(&"GET /api/v1/status".into()), "{routes}");
    }
}

#[tokio::test]
async fn what_a_peer_can_hold_is_bounded() {
    let fleet = Fleet::start(1).await;
    let admin = fleet.admin().await;
    let head = format!("GET /healthz HTTP/1.1\r\nHost: {admin}\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let mut answer = Vec::new();
    let (mut reading, mut writing) = stream.split();
    // The answer may come before the request is out; then writing or reading on ends in a reset.
    let (_, _) = tokio::join!(
        tokio::io::AsyncWriteExt::write_all(&mut writing, head.as_bytes()),
        reading.read_to_end(&mut answer)
    );
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let long = format!("POST /api/v1/reload HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 9999\r\n\r\n");
    let body = send(admin, &long).await;
    assert_eq!((body.status, body.reason().as_str()), (413, "too_large"));
}

#[tokio::test]
async fn it_answers_to_the_end_of_draining() {
    let fleet = Fleet::start(1).await;
    let (admin, balancer) = (fleet.admin().await, fleet.balancer());
    let client = fleet.attach("a").await;
    let Fleet { server, standins, .. } = fleet;
    let draining = tokio::spawn(server.drain(std::future::pending()));
    balancer.draining.cancelled().await;
    let ready = request(admin, "GET", "/readyz").await;
    assert_eq!((ready.status, ready.reason().as_str()), (503, "draining"));
    assert_eq!(request(admin, "GET", "/healthz").await.status, 200);
    assert_eq!(request(admin, "GET", "/api/v1/status").await.json()["draining"], true);
    let reload = request(admin, "POST", "/api/v1/reload").await;
    assert_eq!((reload.status, reload.reason().as_str()), (503, "draining"));
    drop(client);
    draining.await.unwrap();
    assert!(TcpStream::connect(admin).await.is_err());
    drop(standins);
}
