//! A reload of a large fleet under many live connections: how long until it is in force, and whom it holds up.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::backend;
use crate::client::Client;
use crate::idle::hold;
use crate::target::{config, free, sessile};

const BACKENDS: usize = 1000;
/// Connections that are busy, of those that are held.
const BUSY: usize = 32;
const RELOADS: usize = 10;
/// How long is looked without a reload, to know what the machine does by itself.
const CALM: Duration = Duration::from_secs(3);

/// The table.
pub fn report() -> String {
    let folder = tempfile::tempdir().unwrap();
    let address = free();
    // Few sockets stand for many backends: two names on one address are legal.
    let backends: Vec<_> = backend::start(10).into_iter().cycle().take(BACKENDS).collect();
    let text = config(address, "connection", "off", &backends);
    let admin = text.split("[admin]\naddress = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let _running = Running(sessile(folder.path(), "sessile", &text).spawn().unwrap());
    while !ask(&admin, "/readyz").starts_with("HTTP/1.1 200") {
        std::thread::yield_now();
    }
    let (runtime, mut clients) = hold(address);
    let held = clients.len();
    let mut busy = clients.split_off(held - BUSY);
    let mut during = |work: &(dyn Fn() -> Vec<Duration> + Sync)| {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let working = scope.spawn(|| {
                let times = work();
                over.store(true, Ordering::Relaxed);
                times
            });
            let pauses = runtime.block_on(exchange(&mut busy, &over));
            (working.join().unwrap(), pauses)
        })
    };
    let (_, calm) = during(&|| {
        std::thread::sleep(CALM);
        Vec::new()
    });
    let (reloads, pauses) = during(&|| reload(&folder.path().join("sessile.toml"), &text));
    drop(clients);
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    let of = |times: &[Duration], share: f64| ms(&times[((times.len() - 1) as f64 * share) as usize]);
    format!(
        "\n## reload: {BACKENDS} backends, {held} live connections, {RELOADS} reloads that make the ring anew\n\n\
         | what | p50 ms | p99.9 ms | longest ms |\n|---|---|---|---|\n\
         | file written to configuration in force | {:.1} | | {:.1} |\n\
         | exchanges of {BUSY} busy connections, no reload | {:.2} | {:.2} | {:.2} |\n\
         | the same during reloads | {:.2} | {:.2} | {:.2} |\n",
        of(&reloads, 0.5),
        of(&reloads, 1.0),
        of(&calm, 0.5),
        of(&calm, 0.999),
        of(&calm, 1.0),
        of(&pauses, 0.5),
        of(&pauses, 0.999),
        of(&pauses, 1.0),
    )
}

/// One exchange after another, over all connections in turn; how long each took, in order.
async fn exchange(clients: &mut [Client], over: &AtomicBool) -> Vec<Duration> {
    let mut times = Vec::new();
    while !over.load(Ordering::Relaxed) {
        for client in &mut *clients {
            let asked = Instant::now();
            client.send_turn().await;
            times.push(asked.elapsed());
        }
    }
    times.sort();
    times
}

/// Writes the file again and again, each time with another weight and a further listener; how long it took until that
/// listened, in order.
fn reload(file: &Path, text: &str) -> Vec<Duration> {
    let mut times: Vec<_> = (0..RELOADS)
        .map(|number| {
            let next = free();
            let weight = format!("weight = {}\nname = \"b1\"", 2 + number % 2);
            let other = text.replacen("name = \"b1\"", &weight, 1);
            let new = file.with_extension("new");
            fs::write(&new, format!("{other}[[listener]]\naddress = \"{next}\"\n")).unwrap();
            let written = Instant::now();
            fs::rename(new, file).unwrap();
            while TcpStream::connect(next).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            written.elapsed()
        })
        .collect();
    times.sort();
    times
}

/// One request to the admin port.
fn ask(admin: &str, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(admin) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_to_string(&mut answer).unwrap();
    }
    answer
}

/// Ends with the report.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
