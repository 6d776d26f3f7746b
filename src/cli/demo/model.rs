//! A model that needs no network and no account: real servers get it as their provider, so that turns work.
//!
//! Its answer says how many of the demo's prompts it was shown, that is, how many turns the session remembers.

use std::net::{Ipv4Addr, SocketAddr};

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The prompt of every turn. The server adds text of its own around it.
pub(super) const PROMPT: &str = "[[hello]]";

/// The running model. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Model {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Model {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Model {
    pub(super) async fn start() -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("the demo's model cannot listen: {error}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let router = Router::new().route("/v1/chat/completions", post(complete));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the demo's model ended");
            }
        });
        Ok(Self { address, task })
    }

    /// Where its API begins.
    pub(super) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }
}

async fn complete(Json(asked): Json<Value>) -> Response {
    let messages = asked.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let is_prompt = |message: &&Value| {
        message.get("role").is_some_and(|role| role == "user")
            && message.get("content").is_some_and(|content| content.to_string().contains(PROMPT))
    };
    let content = format!("turn {}", messages.iter().filter(is_prompt).count());
    let base = |object: &str, choices: Value| {
        let usage = json!({ "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2 });
        json!({ "id": "demo", "created": 0, "model": "demo", "object": object, "choices": choices, "usage": usage })
    };
    let message = json!({ "role": "assistant", "content": content });
    if asked.get("stream") != Some(&Value::Bool(true)) {
        let choices = json!([{ "index": 0, "message": message, "finish_reason": "stop" }]);
        return Json(base("chat.completion", choices)).into_response();
    }
    let chunk = |choices: Value| format!("data: {}\n\n", base("chat.completion.chunk", choices));
    let text = [
        chunk(json!([{ "index": 0, "delta": message, "finish_reason": null }])),
        chunk(json!([{ "index": 0, "delta": {}, "finish_reason": "stop" }])),
        "data: [DONE]\n\n".to_owned(),
    ];
    ([(CONTENT_TYPE, "text/event-stream")], text.concat()).into_response()
}
