//! Requests that harm a whole server.

use serde_json::json;
use sessile::fake_server::State;
use sessile::wire::method::denied_by_default;

use crate::harness::client::{refusal, sessile};
use crate::harness::*;

#[test]
fn methods_that_change_a_whole_server_are_denied_and_the_connection_goes_on() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.client().await;
        // Of a family, one that nobody has heard of.
        let denied: Vec<String> = denied_by_default().map(|method| method.replace('*', "anything")).collect();
        for method in &denied {
            let refused = client.refusal(method, json!({"sessionId": "s"})).await;
            assert_eq!(refused, sessile(-32056, "denied"), "{method}");
        }
        client.create("s").await;
        for server in fleet.iter() {
            let arrived = |state: &State| denied.iter().filter(|method| state.count(method) > 0).count();
            assert_eq!(server.look(arrived), 0);
        }
    });
}

#[test]
fn what_is_denied_is_what_was_found_to_change_a_whole_server() {
    let denied: Vec<&str> = denied_by_default().collect();
    for method in [
        "account.getAllUsers",
        "account.login",
        "agentRegistry.*",
        "extensions.*",
        "llmInference.setProvider",
        "managedSettings.clearCache",
        "mcp.config.*",
        "plugins.*",
        "registerExtensionLaunchProvider",
        "runtime.shutdown",
        "secrets.addFilterValues",
        "session.permissions.folderTrust.addTrusted",
        "session.permissions.locations.addToolApproval",
        "session.setForeground",
        "sessionFs.setProvider",
        "sessions.bulkDelete",
        "sessions.configureSessionExtensions",
        "sessions.pruneOld",
        "sessions.releaseLock",
        "sessions.setAdditionalPlugins",
        "sessions.startRemoteControl",
        "sessions.stopRemoteControl",
        "sessions.transferRemoteControl",
        "skills.config.*",
        "user.settings.reload",
        "user.settings.set",
    ] {
        assert!(denied.contains(&method), "{method}");
    }
}

#[test]
fn a_denied_notification_is_dropped() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.client().await;
        client.write(note("runtime.shutdown", &json!({}))).await;
        client.write(note("harmless", &json!({}))).await;
        client.result("ping", json!({})).await;
        assert_eq!(fleet[0].look(|state| (state.count("runtime.shutdown"), state.count("harmless"))), (0, 1));
    });
}

#[test]
fn methods_allow_lets_a_method_through() {
    run(async {
        let fleet = Fleet::local(2).await;
        let text = fleet.text().listener("methods_allow", "[\"account.login\", \"mcp.config.*\"]");
        let balancer = Balancer::start(&text).await;
        let mut client = balancer.client().await;
        for method in ["account.login", "mcp.config.add"] {
            assert_eq!(client.refusal(method, json!({})).await, (-32601, None), "the server's own word");
        }
        assert_eq!(client.refusal("account.logout", json!({})).await.0, -32056);
    });
}

#[test]
fn a_reload_changes_the_policy_for_new_connections_and_for_open_ones() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut old = balancer.client().await;
        balancer.reload(&fleet.text().listener("methods_allow", "[\"account.login\"]")).await;
        assert_eq!(balancer.client().await.refusal("account.login", json!({})).await.0, -32601);
        assert_eq!(old.refusal("account.login", json!({})).await.0, -32601, "until it names a session");
    });
}

#[test]
fn a_provider_is_set_on_one_server_or_on_none() {
    run(async {
        let allow = "[\"sessionFs.setProvider\", \"llmInference.setProvider\"]";
        let params = json!({"initialCwd": "/"});
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text().listener("methods_allow", allow)).await;
        let mut client = balancer.client().await;
        for method in ["sessionFs.setProvider", "llmInference.setProvider"] {
            assert_eq!(client.refusal(method, params.clone()).await, sessile(-32056, "denied"));
        }
        assert!(fleet.iter().all(|server| server.look(|state| state.fs_provider().is_none())));
        client.create("s").await;

        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text().listener("methods_allow", allow)).await;
        let mut client = balancer.client().await;
        client.result("sessionFs.setProvider", params).await;
        client.create("s").await;
        assert!(fleet[0].look(|state| state.fs_provider().is_some()));
    });
}

#[test]
fn a_denied_request_larger_than_an_opening_may_hold_ends_the_connection() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text().set("limits.opening_bytes", "\"4KiB\"")).await;
        let mut client = balancer.client().await;
        let inner = json!({ "jsonrpc": "2.0", "id": "inner", "method": "status.get" }).to_string();
        let inner = format!("Content-Length: {}\r\n\r\n{inner}", inner.len());
        let params = json!({ "sessionId": "s", "then": "x".repeat(5_000) });
        let begun = json!({ "id": "d", "jsonrpc": "2.0", "method": "runtime.shutdown", "params": params })
            .to_string();
        let begun = begun.trim_end_matches('}');
        client.write(format!("Content-Length: {}\r\n\r\n{begun}", begun.len() + inner.len())).await;
        assert_eq!(refusal(&client.answer("d").await), sessile(-32056, "denied"));
        // A part of that body, not a frame.
        client.write(&inner).await;
        assert_eq!(client.end().await, End::Fin);
        assert_eq!(fleet[0].look(|state| state.count("status.get")), 0);
    });
}
