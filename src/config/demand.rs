//! How many file descriptors a configuration may come to need.

use super::{Config, Listener, Routing};
use crate::runtime::descriptors::Demand;

/// Descriptors that a client takes by itself.
const OF_A_CLIENT: u64 = 1;

impl Config {
    /// What may be needed with so many servers.
    pub fn demand(&self, servers: usize) -> Demand {
        let parked = self.timeouts.linger.and(self.limits.parked).map_or(0, count);
        Demand { clients: of_clients(self, servers), parked, servers, listeners: self.listeners.len() }
    }
}

/// What clients and their links may take; `None` = nothing bounds them.
fn of_clients(config: &Config, servers: usize) -> Option<u64> {
    // With routing by session a client may have a link to every backend; else it has one.
    let links = |listener: &Listener| match listener.routing {
        Routing::Session => count(servers).max(1),
        Routing::Connection => 1,
    };
    let mut listeners: Vec<&Listener> = config.listeners.iter().collect();
    listeners.sort_by_key(|listener| std::cmp::Reverse(links(listener)));
    // At worst, all come through the listeners whose clients need most.
    let mut left = config.limits.connections.map(count);
    let mut needed: u64 = 0;
    for listener in listeners {
        let connections = match (listener.connections.map(count), left) {
            (Some(own), Some(left)) => own.min(left),
            (own, left) => own.or(left)?,
        };
        left = left.map(|left| left.saturating_sub(connections));
        let each = OF_A_CLIENT.saturating_add(links(listener));
        needed = needed.saturating_add(connections.saturating_mul(each));
    }
    Some(needed)
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(limits: &str, listener: &str) -> Config {
        let backend = "[[backend]]\nname = \"a\"\naddress = \"a:1\"";
        crate::config::parse(&format!("{limits}\n[[listener]]\n{listener}\n{backend}\n"), "test").unwrap()
    }

    #[test]
    fn what_is_needed_follows_the_lower_bound() {
        let clients = |limits: &str, listener: &str| config(limits, listener).demand(1).clients;
        assert_eq!(clients("limits.connections = 1000", ""), Some(2000));
        assert_eq!(clients("limits.connections = 1000", "connections = 10"), Some(20));
        assert_eq!(clients("limits.connections = 0", "connections = 10"), Some(20));
        assert_eq!(clients("limits.connections = 0", ""), None);
        let parked = "limits.connections = 10\nlimits.parked = 7\ntimeouts.linger = \"1s\"";
        let demand = Demand { clients: Some(20), parked: 7, servers: 3, listeners: 1 };
        assert_eq!(config(parked, "").demand(3), demand);
    }

    #[test]
    fn a_client_whose_frames_go_by_their_sessions_may_have_a_link_to_every_backend() {
        let needed = |listeners: &str| {
            let text = format!(
                "limits.connections = 100\n{listeners}[[backend]]\nname = \"a\"\naddress = \"a:1\"\n"
            );
            crate::config::parse(&text, "test").unwrap().demand(3).clients.unwrap()
        };
        let (plain, session) = (
            "[[listener]]\naddress = \"127.0.0.1:1\"\n",
            "[[listener]]\naddress = \"127.0.0.1:2\"\nrouting = \"session\"\n",
        );
        assert_eq!(needed(plain), 200);
        assert_eq!(needed(session), 400);
        assert_eq!(needed(&format!("{plain}{session}")), 400, "all may come through the one that needs more");
        assert_eq!(needed(&format!("{plain}{session}connections = 10\n")), 10 * 4 + 90 * 2);
        let many = config("limits.connections = 100", "routing = \"session\"").demand(40);
        assert_eq!(many.clients, Some(100 * 41), "a name needs as much as the servers that it stands for");
    }
}
