//! Who owns a session when one client has several and several clients have one.

use serde_json::json;

use super::switched;
use crate::harness::*;

#[test]
fn detach_and_destroy_let_go_of_a_session_while_its_client_stays() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&switched(&fleet)).await;
        let mut client = balancer.client().await;
        for (method, session) in
            ["session.detach", "session.destroy", "session.delete"].into_iter().zip(balancer.sessions_at(0))
        {
            client.create(&session).await;
            client.turn(&session).await;
            assert_eq!(balancer.owner(&session).as_deref(), Some("a"));
            client.result(method, json!({"sessionId": session})).await;
            assert_eq!(balancer.owner(&session), None, "{method}");
        }
        let session = balancer.session_at(0);
        balancer.reload(&switched(&fleet).state("a", "drain")).await;
        until("it is unloaded", || fleet.live(&session).is_empty()).await;
        let mut other = balancer.client().await;
        other.resume(&session).await;
        assert_eq!((fleet.home(&session), other.prompts(&session).await), (1, 1));
        // The first meets it there, on a server it had nothing to do with.
        client.resume(&session).await;
        assert_eq!(fleet[1].look(|state| state.attached(&session).len()), 2);
    });
}

#[test]
fn two_clients_of_one_session_meet_and_hear_the_same() {
    run(async {
        let fleet = Fleet::local(3).await;
        let balancer = Balancer::start(&switched(&fleet)).await;
        let (mut first, mut second) = (balancer.client().await, balancer.client().await);
        for session in balancer.sessions_at(1).take(10) {
            tokio::join!(first.create(&session), second.create(&session));
            assert_eq!(fleet[fleet.home(&session)].look(|state| state.attached(&session).len()), 2);
            let said = first.turn(&session).await;
            let heard = loop {
                let params = second.asked("session.event").await["params"].clone();
                if params["event"]["type"] == "assistant.message" {
                    break params;
                }
            };
            assert_eq!(
                (&heard["sessionId"], &heard["event"]["data"]["content"]),
                (&json!(session), &json!(said))
            );
            first.result("session.detach", json!({"sessionId": session})).await;
            assert!(balancer.owner(&session).is_some(), "the second is still attached");
        }
        drop(second);
        until("nobody is", || balancer.inner().directory.is_empty()).await;
    });
}

#[test]
fn however_many_sessions_are_opened_at_once_each_backend_is_dialled_once() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&switched(&fleet)).await;
        let connects =
            || -> usize { fleet.iter().map(|server| server.look(|state| state.count("connect"))).sum() };
        let mut client = balancer.client().await;
        let before = connects();
        let mut asked = Vec::new();
        for at in 0..2 {
            for session in balancer.sessions_at(at).take(30) {
                asked.push(client.ask("session.create", json!({"sessionId": session})).await);
            }
        }
        for id in asked {
            assert!(client.answer(id).await.get("result").is_some());
        }
        let more = connects() - before;
        assert!(more <= 2, "{more} connections of one client to two backends");
    });
}
