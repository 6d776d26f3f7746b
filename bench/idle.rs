//! What a connection costs that says nothing, and what 16 bytes on it cost.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::client::Client;
use crate::scene;
use crate::target::{Kind, Target};

const CONNECTIONS: usize = 4000;

/// The table.
pub fn report(targets: &[Target]) -> String {
    let mut text = format!(
        "\n## idle: {CONNECTIONS} pinned connections, then 16 bytes on each\n\n\
         | target | KiB a connection | µs CPU for its 16 bytes | KiB after |\n|---|---|---|---|\n"
    );
    let meant = |target: &&Target| {
        target.has_process()
            && !matches!(target.kind(), Kind::Located | Kind::HaproxyHash | Kind::HaproxySplice)
    };
    for target in targets.iter().filter(meant) {
        let before = target.resident_kib();
        let each = |after: u64| after.saturating_sub(before) as f64 / CONNECTIONS as f64;
        let (runtime, mut clients) = hold(target.address());
        let held = each(target.resident_kib());
        let cpu = target.cpu();
        runtime.block_on(async {
            for client in &mut clients {
                client.nudge().await;
            }
            settled(target).await;
        });
        let cpu = target.cpu().saturating_sub(cpu).as_secs_f64() * 1e6 / CONNECTIONS as f64;
        let _ = writeln!(
            text,
            "| {} | {held:.2} | {cpu:.1} | {:.2} |",
            target.name(),
            each(target.resident_kib())
        );
        drop(clients);
    }
    text
}

/// Waits until the target's processor time stands still.
async fn settled(target: &Target) {
    let mut last = target.cpu();
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let now = target.cpu();
        if now.saturating_sub(last) < std::time::Duration::from_millis(1) {
            return;
        }
        last = now;
    }
}

/// Pinned connections, for as long as they are held.
pub fn hold(target: SocketAddr) -> (tokio::runtime::Runtime, Vec<Client>) {
    let runtime = scene::runtime();
    let clients = runtime.block_on(async {
        let mut clients = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            clients.push(Client::pinned(target).await);
        }
        clients
    });
    (runtime, clients)
}
