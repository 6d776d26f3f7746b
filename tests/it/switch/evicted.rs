//! One session of a client is taken elsewhere while its server is down: the client's other sessions stay there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sessile::fleet::Health;

use super::loss::{hasty, told};
use super::open;
use crate::harness::client::{refusal, sessile};
use crate::harness::*;

#[test]
fn a_session_taken_elsewhere_leaves_its_clients_others_where_they_are() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&hasty(&fleet)).await;
        let mut client = balancer.client().await;
        let mut at_b = balancer.sessions_at(1);
        let (taken, stays) = (at_b.next().unwrap(), at_b.next().unwrap());
        for session in [&taken, &stays] {
            client.create(session).await;
            client.turn(session).await;
        }
        client.seen.clear();
        fleet[1].mute(true);
        let send = |session: &str| json!({"sessionId": session, "prompt": "x"});
        let lost = client.ask("session.getMessages", json!({"sessionId": taken})).await;
        let waits = client.ask("session.send", send(&stays)).await;
        balancer.until_health("b", Health::Down).await;
        let mut second = balancer.client().await;
        second.resume(&taken).await;
        assert_eq!(refusal(&client.answer(lost).await), sessile(-32057, "backend_lost"));
        assert_eq!(told(&mut client).await, taken);
        let owners = [&taken, &stays].map(|session| balancer.owner(session));
        assert_eq!(owners, [Some("a".into()), Some("b".into())]);
        let refused = client.call("session.send", send(&taken)).await;
        assert_eq!(refusal(&refused), sessile(-32057, "backend_lost"));
        second.turn(&taken).await;
        fleet[1].mute(false);
        assert!(client.answer(waits).await.get("result").is_some(), "it has waited for its server");
        balancer.until_health("b", Health::Up).await;
        until("the old copy has gone", || fleet.live(&taken) == [0]).await;
        client.turn(&stays).await;
        let of_taken = |frame: &Value| frame["params"]["sessionId"] == taken.as_str();
        assert!(!client.seen.iter().any(of_taken), "nothing is heard of the old copy: {:?}", client.seen);
        client.resume(&taken).await;
        assert_eq!(client.prompts(&taken).await, 2);
        client.turn(&taken).await;
        assert_eq!((fleet.home(&taken), fleet.home(&stays)), (0, 1));
        drop((client, second));
        until("all is given back", || balancer.inner().directory.is_empty() && balancer.active() == 0).await;
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
        assert_eq!(balancer.metrics().opening_memory.get(), 0);
    });
}

/// Two servers that are played by hand; the second answers nothing of the balancer's own while this is set.
async fn played() -> (Vec<Raw>, Arc<AtomicBool>) {
    let is_down = Arc::new(AtomicBool::new(false));
    let down = Arc::clone(&is_down);
    let says = move |_: &str, _: &Value| down.load(Ordering::Relaxed).then_some(Value::Null);
    (vec![Raw::start().await, Raw::saying(Arc::new(says)).await], is_down)
}

fn event(session: &str, text: &str) -> Vec<u8> {
    let params = json!({"sessionId": session, "event": {"type": "assistant.message", "data": text}});
    note("session.event", &params)
}

#[test]
fn a_server_is_told_that_a_client_leaves_and_until_it_has_answered_nothing_of_the_session_is_passed_on() {
    run(async {
        let (mut raws, is_down) = played().await;
        let text = Raw::text(&raws).set("placement.storage", "\"shared\"").probed_often();
        let balancer =
            Balancer::start(&text.set("health.rise", "1").set("timeouts.locate", "\"500ms\"")).await;
        let mut client = balancer.dial().await;
        let mut at_b = balancer.sessions_at(1);
        let (taken, stays) = (at_b.next().unwrap(), at_b.next().unwrap());
        let mut line = open(&mut client, &mut raws[1], &taken).await;
        let create = client.ask("session.create", json!({"sessionId": stays})).await;
        let asked = line.asked("session.create").await;
        line.reply(&asked, json!({"sessionId": stays})).await;
        client.answer(create).await;
        let lost = client.ask("session.getMessages", json!({"sessionId": taken})).await;
        let late = line.asked("session.getMessages").await;
        is_down.store(true, Ordering::Relaxed);
        balancer.until_health("b", Health::Down).await;
        let mut second = balancer.dial().await;
        let resume = second.ask("session.resume", json!({"sessionId": taken})).await;
        let mut other = raws[0].line().await;
        let asked = other.asked("session.resume").await;
        other.reply(&asked, json!({"sessionId": taken})).await;
        assert!(second.answer(resume).await.get("result").is_some());
        // In the name of the client, behind what it has sent.
        let detach = line.asked("session.detach").await;
        assert_eq!(detach["params"]["sessionId"], taken.as_str());
        is_down.store(false, Ordering::Relaxed);
        assert_eq!(refusal(&client.answer(lost).await), sessile(-32057, "backend_lost"));
        assert_eq!(told(&mut client).await, taken);
        line.write(event(&taken, "old")).await;
        line.write(request(70, "userInput.request", &json!({"sessionId": taken}))).await;
        line.reply(&late, json!({"events": []})).await;
        assert_eq!(line.answer(70).await["error"]["code"], -32603);
        // It comes back to this server before that has answered.
        drop(second);
        until("it is free", || balancer.owner(&taken).is_none()).await;
        balancer.until_health("b", Health::Up).await;
        let resume = client.ask("session.resume", json!({"sessionId": taken})).await;
        let asked = line.asked("session.resume").await;
        line.write(event(&taken, "old")).await;
        line.reply(&detach, json!({"success": true})).await;
        line.write(event(&taken, "new")).await;
        line.reply(&asked, json!({"sessionId": taken})).await;
        line.write(event(&stays, "as ever")).await;
        let heard = async |client: &mut Client| client.asked("session.event").await["params"].clone();
        let first = heard(&mut client).await;
        assert_eq!((&first["sessionId"], &first["event"]["data"]), (&json!(taken), &json!("new")));
        assert_eq!(heard(&mut client).await["sessionId"], stays.as_str());
        assert!(client.answer(resume).await.get("result").is_some());
        assert!(client.seen.is_empty(), "{:?}", client.seen);
    });
}
